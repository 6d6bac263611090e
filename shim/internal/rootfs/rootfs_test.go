package rootfs

import (
	"os"
	"syscall"
	"testing"
)

func TestAFolderThatIsNotEmptyIsTheImagesAndAnythingElseIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		make func(root string) error
		has  bool
		fits bool
	}{
		"absent":  {func(string) error { return nil }, false, true},
		"empty":   {func(root string) error { return os.Mkdir(root+"/nix", 0o755) }, false, true},
		"full":    {func(root string) error { return os.MkdirAll(root+"/nix/store", 0o755) }, true, true},
		"file":    {func(root string) error { return os.WriteFile(root+"/nix", nil, 0o644) }, false, false},
		"symlink": {func(root string) error { return os.Symlink("/var/empty", root+"/nix") }, false, false},
		"host":    {func(root string) error { return os.Symlink("/etc", root+"/nix") }, false, false},
		"fifo":    {func(root string) error { return syscall.Mkfifo(root+"/nix", 0o644) }, false, false},
	} {
		root := t.TempDir()
		if err := c.make(root); err != nil {
			t.Fatal(err)
		}
		if has, err := HasNix(root); has != c.has || (err == nil) != c.fits {
			t.Errorf("%s: %v, %v", name, has, err)
		}
	}
	if _, err := HasNix("/nonesuch"); err == nil {
		t.Error("a missing root file system is an error")
	}
}
