package inner

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"flox.dev/flox-node/shim/internal/node"
)

func TestNoPathThatLeadsBackToUsIsAnInnerRuntime(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	older := filepath.Join(dir, "payloads/older/bin/flox-runtime")
	if err := node.WriteFile(older, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"self": self, "older": older} {
		one, two := filepath.Join(dir, name+"-1"), filepath.Join(dir, name+"-2")
		if err := errors.Join(os.Symlink(target, one), os.Symlink(one, two)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{target, one, two} {
			if err := usable(path); !errors.Is(err, errOurselves) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if err := usable("/bin/true"); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"runc", "", "/nonesuch", "/", "/etc/passwd"} {
		if err := usable(path); err == nil {
			t.Errorf("%q is no inner runtime", path)
		}
	}
}
