package checkout

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/rootfs"
)

func TestAManifestIsWrittenAsItStandsInTheLock(t *testing.T) {
	const lock = `{"lockfile-version": 1, "packages": [], "manifest": {
		"schema-version": "1.14.0", "install": {"hello": {"pkg-path": "hello", "priority": 5, "version": null},
		"x y": {"store-path": "/nix/store/x"}}, "vars": {"A": "a \"q\" \\ é\u0001", "EMPTY": ""}, "services": {},
		"hook": {"on-activate": "echo \"$A\"\n\\\n"}, "options": {"systems": ["x86_64-linux"], "allow": {"broken": false}}}}`
	const wanted = `schema-version = "1.14.0"

[hook]
on-activate = """
echo \"$A\"
\\
"""

[install]
hello = {pkg-path = "hello", priority = 5}
"x y" = {store-path = "/nix/store/x"}

[options]
allow = {broken = false}
systems = ["x86_64-linux"]

[vars]
A = "a \"q\" \\ é\u0001"
EMPTY = ""
`
	text, err := ManifestOf([]byte(lock))
	if err != nil || string(text) != wanted {
		t.Fatalf("%s\n%v", text, err)
	}
}

func TestWhatIncludesOtherEnvironmentsIsTheManifestBeforeTheyWereMerged(t *testing.T) {
	text, err := ManifestOf([]byte(`{"manifest": {"vars": {"A": "1", "B": "2"}}, "compose": {"composer": {"vars": {"A": "1"}}}}`))
	if err != nil || string(text) != "\n[vars]\nA = \"1\"\n" {
		t.Fatalf("%q, %v", text, err)
	}
}

func TestADamagedLockMakesNoCheckout(t *testing.T) {
	store := "/nix/store/0c1dfghijk2lmnpqrsvwxyz34567890a-environment-run"
	node.SetPrefix(t.TempDir())
	t.Cleanup(func() { node.SetPrefix("") })
	view := activation.NewView([]string{filepath.Base(store)})
	if err := os.MkdirAll(view.Host(store), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, err := rootfs.Open(dir, rootfs.IDs{UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	resolution := records.Resolution{Environment: "demo/hello", Mode: "run", System: "x86_64-linux", StorePath: store}
	for _, lock := range []string{"", "{", "[]", `{"manifest": 3}`} {
		if lock != "" {
			if err := os.WriteFile(view.Host(store)+"/manifest.lock", []byte(lock), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := Add(root, view, resolution, false); err == nil || root.Has(Folder) {
			t.Errorf("%q: %v", lock, err)
		}
	}
	if err := os.WriteFile(view.Host(store)+"/manifest.lock", []byte(`{"manifest": {}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Add(root, view, resolution, false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run", "dev"} {
		target, err := os.Readlink(filepath.Join(dir, ".flox/run/x86_64-linux.hello-"+name))
		if (name == "run") != (err == nil && target == store) {
			t.Errorf("%s: %s, %v", name, target, err)
		}
	}
	if err := Add(root, view, resolution, false); err == nil {
		t.Error("a checkout of the image's is left alone")
	}
}

// Whatever a lock holds: a manifest or an error, and no key in it takes more than its line.
func FuzzManifestOf(f *testing.F) {
	f.Add([]byte(`{"manifest":{"vars":{"a\n[hook]":"x\n[hook]\non-activate='y'"},"install":{"x":{"pkg-path":"x"}}}}`), "a\n[hook]")
	f.Add([]byte(`{"compose":{"composer":{"a":[1,{"b":null}],"c":1e999}}}`), "\"\\\r")
	f.Fuzz(func(t *testing.T, lock []byte, key string) {
		if manifest, err := ManifestOf(lock); err != nil && len(manifest) > 0 {
			t.Error(err)
		}
		named, err := ManifestOf([]byte(`{"manifest":{"vars":{` + strconv.QuoteToASCII(key) + `:"value"}}}`))
		if err == nil && strings.Count(string(named), "\n") != 3 {
			t.Errorf("%q", named)
		}
	})
}
