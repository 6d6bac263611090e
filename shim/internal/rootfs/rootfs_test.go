package rootfs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAnyNixButAnEmptyFolderIsTheImages(t *testing.T) {
	for name, c := range map[string]struct {
		make func(root string) error
		has  bool
	}{
		"absent":  {func(string) error { return nil }, false},
		"empty":   {func(root string) error { return os.Mkdir(root+"/nix", 0o755) }, false},
		"full":    {func(root string) error { return os.MkdirAll(root+"/nix/store", 0o755) }, true},
		"file":    {func(root string) error { return os.WriteFile(root+"/nix", nil, 0o644) }, true},
		"symlink": {func(root string) error { return os.Symlink("/var/empty", root+"/nix") }, true},
		"host":    {func(root string) error { return os.Symlink("/etc", root+"/nix") }, true},
		"fifo":    {func(root string) error { return syscall.Mkfifo(root+"/nix", 0o644) }, true},
	} {
		root := t.TempDir()
		if err := c.make(root); err != nil {
			t.Fatal(err)
		}
		if has, err := HasNix(root); err != nil || has != c.has {
			t.Errorf("%s: %v, %v", name, has, err)
		}
	}
	if _, err := HasNix("/nonesuch"); err == nil {
		t.Error("a missing root file system is an error")
	}
}

func TestUsersAreLookedForWithoutFollowingOrOpening(t *testing.T) {
	root := t.TempDir()
	if HasUsers(root) {
		t.Error("an empty image has no users")
	}
	if err := os.Symlink("/etc", filepath.Join(root, "etc")); err != nil {
		t.Fatal(err)
	}
	if HasUsers(root) {
		t.Error("the host's users are not the image's")
	}
	_ = os.Remove(filepath.Join(root, "etc"))
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan bool, 1)
	go func() { done <- HasUsers(root) }()
	select {
	case has := <-done:
		if !has {
			t.Error("it has an /etc/passwd")
		}
	case <-time.After(time.Minute):
		t.Fatal("a FIFO hangs the runtime")
	}
}

func TestALinkIsMadeInTheImageAndNowhereElse(t *testing.T) {
	const name = "/.flox/run/x86_64-linux.hello.run"
	defer syscall.Umask(syscall.Umask(0o077))
	root := t.TempDir()
	if err := Link(root, name, "/nix/store/x"); err != nil {
		t.Fatal(err)
	}
	if target, _ := os.Readlink(filepath.Join(root, name)); target != "/nix/store/x" {
		t.Fatal(target)
	}
	if info, _ := os.Stat(filepath.Join(root, ".flox")); info.Mode().Perm() != 0o755 {
		t.Fatal(info.Mode())
	}
	if err := Link(root, name, "/nix/store/y"); err == nil {
		t.Error("what is there stays")
	}
	for _, link := range []string{".flox", ".flox/run"} {
		root, outside := t.TempDir(), t.TempDir()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
		if err := Link(root, name, "/nix/store/x"); err == nil {
			t.Errorf("the symlink %s of the image was followed", link)
		}
		if entries, _ := os.ReadDir(outside); len(entries) != 0 {
			t.Errorf("%v", entries)
		}
	}
}
