package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// As many as runc follows in one path.
const maxSymlinks = 255

// Tree is a container's root file system together with the mounts on it, as far as the host can see them.
//
// It resolves paths as the runtime will: component by component, with symlinks that never leave the root, through what
// is already mounted. Nothing is opened. Whoever can write to a volume can change it later, so an answer is good for a
// refusal with a text, never for protection.
type Tree struct {
	root   string
	mounts []mounted
}

type mounted struct {
	place  string // resolved
	source string // on the host; empty: what is in it cannot be known
}

// NewTree is a root file system without mounts.
func NewTree(root string) *Tree { return &Tree{root: root} }

// Mount lays a mount over the tree and gives its resolved place. The source is a file or a folder of the host that is
// bound there, or empty for any other kind of file system.
func (t *Tree) Mount(destination, source string) (place string, err error) {
	place, _, err = t.Resolve(destination)
	if err == nil {
		t.mounts = append(t.mounts, mounted{place, source})
	}
	return place, err
}

// Resolve follows all symlinks of a path. What does not exist is taken as it is written, and has no info; of what lies
// in a file system that the host cannot see, the error says so.
func (t *Tree) Resolve(name string) (resolved string, info os.FileInfo, err error) {
	resolved, rest := "/", components(name)
	links := 0
	for len(rest) > 0 {
		component := rest[0]
		rest = rest[1:]
		if component == ".." {
			resolved, info = path.Dir(resolved), nil
			continue
		}
		next := path.Join(resolved, component)
		host, seen := t.host(next)
		if !seen {
			resolved, info = next, nil
			continue
		}
		info, err = os.Lstat(host)
		if err != nil || info.Mode()&os.ModeSymlink == 0 {
			// Whatever the problem is (nothing there, a file on the way), the runtime will have it as well.
			resolved, err = next, nil
			continue
		}
		if links++; links > maxSymlinks {
			return "", nil, fmt.Errorf("%q leads through too many symlinks", name)
		}
		target, err := os.Readlink(host)
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(target) {
			resolved = "/"
		}
		info = nil
		rest = append(components(target), rest...)
	}
	return resolved, info, nil
}

// ErrUnseen says that a path lies in a file system that the host cannot see.
var ErrUnseen = errors.New("it lies in a file system that cannot be seen from the host")

// Stat says what is at a path. The error satisfies os.IsNotExist where nothing is.
func (t *Tree) Stat(name string) (os.FileInfo, error) {
	resolved, info, err := t.Resolve(name)
	if err != nil {
		return nil, err
	}
	host, seen := t.host(resolved)
	if !seen {
		return nil, ErrUnseen
	}
	if info == nil { // the root, or what a `..` led back to
		return os.Lstat(host)
	}
	return info, nil
}

// Covered says that a resolved path is on a mount.
func (t *Tree) Covered(resolved string) bool {
	for _, mount := range t.mounts {
		if Within(resolved, mount.place) {
			return true
		}
	}
	return false
}

// host is where the host sees a resolved path.
func (t *Tree) host(resolved string) (name string, seen bool) {
	for i := len(t.mounts) - 1; i >= 0; i-- {
		mount := t.mounts[i]
		if Within(resolved, mount.place) {
			below := strings.TrimPrefix(strings.TrimPrefix(resolved, mount.place), "/")
			return strings.TrimSuffix(filepath.Join(mount.source, below), "/"), mount.source != ""
		}
	}
	return filepath.Join(t.root, resolved), true
}

// Within says that a path is dir or lies below it. Both are clean and absolute.
func Within(name, dir string) bool {
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

func components(name string) []string {
	parts := strings.Split(name, "/")
	kept := parts[:0]
	for _, part := range parts {
		if part != "" && part != "." {
			kept = append(kept, part)
		}
	}
	return kept
}

// CheckPlace says whether a name in the root can be a folder of ours: nothing is there, or a folder.
func CheckPlace(rootfs, name string) error {
	info, err := os.Lstat(filepath.Join(rootfs, name))
	switch {
	case errors.Is(err, syscall.ENOENT):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return syscall.ENOTDIR
	}
	return nil
}
