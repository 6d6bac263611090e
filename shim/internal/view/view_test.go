package view

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/node"
)

const (
	letters = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	built   = "/nix/store/" + letters + "-environment"
	bash    = "/nix/store/" + letters + "-bash"
)

func store(t *testing.T, requisites string) {
	t.Helper()
	node.SetPrefix(t.TempDir())
	t.Cleanup(func() { node.SetPrefix("") })
	for _, folder := range []string{built, bash} {
		if err := os.MkdirAll(node.Path(folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(node.Path(built+"/requisites.txt"), []byte(requisites), 0o444); err != nil {
		t.Fatal(err)
	}
}

func TestTheClosureIsTheEnvironmentAndWhatItLists(t *testing.T) {
	for _, requisites := range []string{bash, bash + "\n", bash + "\n" + built + "\n" + bash + "\n"} {
		store(t, requisites)
		got, err := Closure(built)
		if err != nil || !reflect.DeepEqual(got, []string{letters + "-environment", letters + "-bash"}) {
			t.Errorf("%q: %q, %v", requisites, got, err)
		}
	}
}

func TestAListThatIsNotOneOfStorePathsIsRefused(t *testing.T) {
	for _, line := range []string{
		"", "/etc", "/nix/store", "/nix/store/", bash + "/..", bash + "/bin", "../" + bash, bash + "\x00", " " + bash,
		"/nix/store/" + letters + "-", "/nix/store/" + letters + "-gone", strings.Repeat("x", 1<<17),
	} {
		store(t, bash+"\n"+line+"\n"+built+"\n")
		if got, err := Closure(built); err == nil {
			t.Errorf("%.80q: %q", line, got)
		}
	}
	store(t, "")
	if err := os.Remove(node.Path(built + "/requisites.txt")); err != nil {
		t.Fatal(err)
	}
	if got, err := Closure(built); err == nil {
		t.Errorf("%q", got)
	}
}

func TestNothingIsMountedOnWhatTheRuntimeDidNotMount(t *testing.T) {
	rootfs, elsewhere := t.TempDir(), t.TempDir()
	for _, make := range []func() error{
		func() error { return nil },
		func() error { return os.Mkdir(filepath.Join(rootfs, "nix"), 0o755) },
		func() error { return os.Symlink(elsewhere, filepath.Join(rootfs, "nix")) },
		func() error { return os.WriteFile(filepath.Join(rootfs, "nix"), nil, 0o644) },
	} {
		_ = os.Remove(filepath.Join(rootfs, "nix"))
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if place, err := openPlace(rootfs); err == nil {
			t.Errorf("%d", place)
		}
	}
}

// Whatever a tenant's environment lists: what is shown is what lies in the store, by a name that leads nowhere else.
func FuzzClosure(f *testing.F) {
	f.Add([]byte(bash + "\n" + built + "\r\n"))
	f.Add([]byte("/nix/store/../../etc\n-o\n" + bash + "/../x"))
	f.Fuzz(func(t *testing.T, requisites []byte) {
		store(t, string(requisites))
		names, err := Closure(built)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without a text")
			}
			return
		}
		for _, name := range names {
			if name != letters+"-environment" && name != letters+"-bash" {
				t.Errorf("%q", name)
			}
		}
	})
}
