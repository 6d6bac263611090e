package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func openRoot(t *testing.T, links map[string]string, folders ...string) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range folders {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range links {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755),
			os.Symlink(target, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir, IDs{os.Geteuid(), os.Getegid()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	return root, dir
}

func TestAPathIsResolvedAsInTheContainer(t *testing.T) {
	root, _ := openRoot(t, map[string]string{
		"bin": "usr/bin", "usr/sh": "../bin/dash", "abs": "/usr/bin", "up": "../../../usr", "host": "/etc/hostname",
		"usr/deep/back": "../../abs/..", "gone": "/not/there", "loop": "loop",
	}, "usr/bin/dash", "usr/deep")
	for name, wanted := range map[string]string{
		"/bin": "/usr/bin", "/bin/dash": "/usr/bin/dash", "/usr/sh": "/usr/bin/dash", "/abs/dash": "/usr/bin/dash",
		"/up/bin": "/usr/bin", "/usr/deep/back": "/usr", "/usr/../bin/./dash": "/usr/bin/dash", "/../usr": "/usr",
	} {
		if got, found, err := root.Resolve(name); got != wanted || !found || err != nil {
			t.Errorf("%s: %s, %v, %v", name, got, found, err)
		}
	}
	for name, wanted := range map[string]string{
		"/host": "/etc/hostname", "/gone/x": "/not/there/x", "/bin/none": "/usr/bin/none", "/a/b": "/a/b",
	} {
		if got, found, err := root.Resolve(name); got != wanted || found || err != nil {
			t.Errorf("%s: %s, %v, %v", name, got, found, err)
		}
	}
	if _, _, err := root.Resolve("/loop/x"); !errors.Is(err, syscall.ELOOP) {
		t.Error(err)
	}
	if names := root.Names("/bin"); !slices.Equal(names, []string{"dash"}) {
		t.Error(names)
	}
	if root.Names("/none") != nil || root.Names("/host") != nil {
		t.Error("the host's")
	}
}

func TestWhatIsAddedLiesInTheImageAndReplacesNothing(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	root, dir := openRoot(t, map[string]string{"bin": "usr/bin", "etc": "/elsewhere", "fifo": "usr"})
	for _, add := range []error{
		root.Link("/bin/sh", "/tools/sh"), root.File("/etc/passwd", []byte("root\n"), 0o644),
		root.Folder("/tmp", os.ModeSticky|0o777), root.Folder("/a/b", 0o700),
	} {
		if add != nil {
			t.Fatal(add)
		}
	}
	if target, _ := os.Readlink(dir + "/usr/bin/sh"); target != "/tools/sh" {
		t.Error(target)
	}
	if content, _ := os.ReadFile(dir + "/elsewhere/passwd"); string(content) != "root\n" {
		t.Errorf("%q", content)
	}
	for name, mode := range map[string]os.FileMode{
		"usr": 0o755, "usr/bin": 0o755, "elsewhere": 0o755, "elsewhere/passwd": 0o644, "a": 0o755, "a/b": 0o700,
		"tmp": os.ModeSticky | 0o777,
	} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode()&^os.ModeDir != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	for _, again := range []error{
		root.Link("/bin/sh", "x"), root.File("/etc/passwd", nil, 0o644), root.Folder("/tmp", 0o755), root.Link("/usr", "x"),
	} {
		if !errors.Is(again, fs.ErrExist) {
			t.Errorf("%v", again)
		}
	}
}

func TestSpecialFilesOfAnImageHangNobody(t *testing.T) {
	root, dir := openRoot(t, nil)
	if err := syscall.Mkfifo(dir+"/etc", 0o644); err != nil {
		t.Fatal(err)
	}
	if !root.Has("/etc") || !root.Has("/etc/passwd") || root.File("/etc/passwd", nil, 0o644) == nil {
		t.Error("a FIFO is no folder")
	}
	if root.Names("/etc") != nil {
		t.Error("it was opened")
	}
}

func TestAContainerWithAUserNamespaceOwnsWhatIsAdded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, 70000, 70001), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	for above := dir; above != "/"; above = filepath.Dir(above) { // the ids need not be able to come here
		_ = os.Chmod(above, 0o755)
		if above == os.TempDir() {
			_ = os.Chmod(above, os.ModeSticky|0o777)
			break
		}
	}
	root, err := Open(dir, IDs{70000, 70001})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := errors.Join(root.File("/etc/passwd", nil, 0o644), root.Link("/bin/sh", "x"), root.Folder("/home", 0o700),
		root.Give("/home", IDs{71000, 71000})); err != nil {
		t.Fatal(err)
	}
	for name, wanted := range map[string]uint32{"etc": 70000, "etc/passwd": 70000, "bin/sh": 70000, "home": 71000} {
		var info syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, name), &info); err != nil || info.Uid != wanted {
			t.Errorf("%s: %d, %v", name, info.Uid, err)
		}
	}
}

func FuzzAHostileImageKeepsEverythingInside(f *testing.F) {
	f.Add("usr/bin", "/etc", "../../..", "/bin/sh")
	f.Add("..", "bin/../..", "/etc", "/etc/a/../b")
	f.Fuzz(func(t *testing.T, bin, etc, tmp, name string) {
		dir := t.TempDir()
		for link, target := range map[string]string{"bin": bin, "etc": etc, "tmp": tmp} {
			_ = os.Symlink(target, filepath.Join(dir, "root", link))
			_ = os.MkdirAll(filepath.Join(dir, "root"), 0o755)
			_ = os.Symlink(target, filepath.Join(dir, "root", link))
		}
		root, err := Open(filepath.Join(dir, "root"), IDs{os.Geteuid(), os.Getegid()})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for _, each := range []string{name, "/bin/sh", "/etc/passwd", "/tmp/x"} {
			if len(each) < 200 && strings.Count(each, "/") < 20 {
				_ = root.File(each, nil, 0o644)
			}
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Fatalf("%v", entries)
		}
	})
}
