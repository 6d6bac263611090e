package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lay makes files below a folder: a content that begins with "->" is a symlink, one that ends with "/" a folder.
func lay(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, isLink := strings.CutPrefix(content, "->"); {
		case isLink:
			err = os.Symlink(target, file)
		case content == "/":
			err = os.MkdirAll(file, 0o755)
		default:
			err = os.WriteFile(file, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPathIsResolvedAsTheRuntimeDoes(t *testing.T) {
	root, volume := t.TempDir(), t.TempDir()
	lay(t, root, map[string]string{
		"run": "/", "var/run": "->/run", "var/lib/up": "->../../../../nix", "data": "->/nix", "all": "->/",
		"a/loop": "->loop", "a/b": "->../var", "file": "x", "etc/host": "->/../../etc/passwd",
	})
	lay(t, volume, map[string]string{"sub/link": "->/nix/store", "sub/real": "/", "out": "->../../data/x"})
	tree := NewTree(root)
	for _, mount := range [][2]string{{"/mnt", volume}, {"/mnt/sub/tmp", ""}, {"/proc", ""}} {
		if place, err := tree.Mount(mount[0], mount[1]); err != nil || place != mount[0] {
			t.Fatal(place, err)
		}
	}
	for name, wanted := range map[string]string{
		"/": "/", "": "/", "/..": "/", "/run/x": "/run/x", "/var/run": "/run", "/var/run/flox": "/run/flox",
		"//var//./run/": "/run", "/var/lib/up": "/nix", "/var/lib/up/store": "/nix/store", "/data": "/nix", "/all": "/",
		"/all/nix": "/nix", "/a/b/run": "/run", "/nonesuch/../data": "/nix", "/file/x": "/file/x", "/data/../etc": "/etc",
		"/etc/host": "/etc/passwd", "/mnt/sub/link": "/nix/store", "/mnt/sub/link/x": "/nix/store/x",
		"/mnt/out": "/nix/x", "/mnt/sub/real": "/mnt/sub/real", "/mnt/sub/tmp/link": "/mnt/sub/tmp/link",
		"/proc/self/root/nix": "/proc/self/root/nix",
	} {
		if got, _, err := tree.Resolve(name); err != nil || got != wanted {
			t.Errorf("%q: %q, %v; wanted %q", name, got, err, wanted)
		}
	}
	if got, _, err := tree.Resolve("/a/loop"); err == nil {
		t.Errorf("a loop is %q", got)
	}
}

func TestWhatIsAtAPath(t *testing.T) {
	root, volume, file := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "file")
	lay(t, root, map[string]string{"bin/sh": "->busybox", "bin/busybox": "x", "dir": "/", "bin/out": "->../../../etc/passwd"})
	lay(t, volume, map[string]string{"app": "->/bin/sh", "broken": "->/nonesuch"})
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tree := NewTree(root)
	for _, mount := range [][2]string{{"/vol", volume}, {"/one", file}, {"/tmp", ""}} {
		if _, err := tree.Mount(mount[0], mount[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/bin/sh", "/vol/app", "/dir", "/one", "/", "/dir/..", "/vol"} {
		if info, err := tree.Stat(name); err != nil || info == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"/bin/nonesuch", "/vol/broken", "/one/x", "/dir/x", "/bin/out"} {
		if info, err := tree.Stat(name); err == nil || errors.Is(err, ErrUnseen) {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if _, err := tree.Stat("/tmp/x"); !errors.Is(err, ErrUnseen) {
		t.Error(err)
	}
	if !tree.Covered("/tmp/x") || !tree.Covered("/vol") || tree.Covered("/volx") || tree.Covered("/bin/sh") {
		t.Error("what is covered")
	}
}

func TestAPlaceOfOursIsAFolderOrNothing(t *testing.T) {
	root := t.TempDir()
	lay(t, root, map[string]string{"file": "x", "link": "->/etc", "folder": "/"})
	for name, wanted := range map[string]bool{"file": false, "link": false, "folder": true, "nothing": true} {
		if err := CheckPlace(root, name); (err == nil) != wanted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("a", "../b", "/a/c", "/a")
	f.Add("x", "/", "/x/../x/nix", "/x")
	f.Fuzz(func(t *testing.T, name, target, path, mount string) {
		root := t.TempDir()
		if strings.ContainsAny(name, "/\x00") || os.Symlink(target, filepath.Join(root, name)) != nil {
			t.Skip()
		}
		tree := NewTree(root)
		_, _ = tree.Mount(mount, root)
		resolved, _, err := tree.Resolve(path)
		if err == nil && (!filepath.IsAbs(resolved) || filepath.Clean(resolved) != resolved) {
			t.Fatalf("%q", resolved)
		}
	})
}
