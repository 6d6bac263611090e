package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/spec"
)

func TestACommandThatNeitherImageNorEnvironmentHasIsRefused(t *testing.T) {
	root, host, volume := t.TempDir(), t.TempDir(), t.TempDir()
	node.SetPrefix(host)
	t.Cleanup(func() { node.SetPrefix("") })
	for _, file := range []string{root + "/bin/app", host + "/nix/store/x/bin/hello", host + "/nix/store/y/bin/theirs", volume + "/there"} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"/hello": "/nix/store/x/bin/hello", "/gone": "/nix/store/x/bin/gone", "/link": "bin/app", "/dangling": "nowhere",
	} {
		if err := os.Symlink(target, root+link); err != nil {
			t.Fatal(err)
		}
	}
	for command, good := range map[string]bool{
		"hello": true, "": true, "./app": true, "bin/none": true, "/bin/app": true, "/bin/../bin/app": true, "/bin": true,
		"/link": true, "/hello": true, "/nix/store/x/bin/hello": true, "/volume/there": true, "/volume/later": true,
		"/proc/self/exe": true, "/tmp/made": true, "/.flox/cache/venv/bin/python": true, "/.flox-node/cache/bin/x": true,
		"/no/such": false, "/bin/none": false, "/dangling": false, "/gone": false, "/nix/store/x/bin/none": false,
		"/nix/store/y": false, "/nix/store/y/bin/theirs": false, "/bin/app/x": false, "/tmpx": false,
	} {
		tree, _, err := makeRoom(root, root, []spec.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/volume", Type: "bind", Source: volume},
		})
		if err != nil {
			t.Fatal(err)
		}
		err = checkCommand(tree, activation.NewView([]string{"x"}), command, "demo/hello")
		if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "no such file or directory") {
			t.Errorf("%q: %v", command, err)
		}
	}
}
