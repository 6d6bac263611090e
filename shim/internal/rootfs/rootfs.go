// Package rootfs looks at a container's root file system from the host.
//
// Its content is the image's author's: symlinks in it may point anywhere on the host. Names are looked up one component
// at a time from an open folder, and no symlink is followed.
package rootfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// HasNix says that the image brings a /nix of its own: anything there but an empty folder.
func HasNix(rootfs string) (bool, error) {
	root, err := openFolder(rootfs)
	if err != nil {
		return false, err
	}
	defer root.Close()
	folder, err := open(root, "nix", syscall.O_DIRECTORY)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return false, nil
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return true, nil
	case err != nil:
		return false, err
	}
	defer folder.Close()
	_, err = folder.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil, err
}

// HasUsers says that the image has an /etc/passwd, from which the runtime takes a user's home.
func HasUsers(rootfs string) bool {
	root, err := openFolder(rootfs)
	if err != nil {
		return false
	}
	defer root.Close()
	etc, err := open(root, "etc", syscall.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer etc.Close()
	const openPath = 0x200000 // O_PATH: only whether it is there; the file may be a FIFO
	passwd, err := open(etc, "passwd", openPath)
	if err != nil {
		return false
	}
	return passwd.Close() == nil
}

// Link makes the symlink path -> target, and the folders above it, unless the image has something there. It is
// what Flox itself makes, and unlike a bind needs no mount in every container.
func Link(rootfs, path, target string) error {
	folder, err := openFolder(rootfs)
	if err != nil {
		return err
	}
	defer func() { folder.Close() }()
	above, name := filepath.Split(path)
	for _, component := range strings.FieldsFunc(above, func(r rune) bool { return r == '/' }) {
		made := syscall.Mkdirat(int(folder.Fd()), component, 0o755)
		if made != nil && !errors.Is(made, syscall.EEXIST) {
			return made
		}
		next, err := open(folder, component, syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		folder.Close()
		folder = next
		if made == nil { // whatever containerd's umask is, every user of the container may look
			if err := folder.Chmod(0o755); err != nil {
				return err
			}
		}
	}
	// The standard library has no symlinkat; through /proc the open folder is the same one.
	return os.Symlink(target, filepath.Join("/proc/self/fd", strconv.Itoa(int(folder.Fd())), name))
}

func openFolder(path string) (*os.File, error) {
	return os.OpenFile(path, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
}

func open(folder *os.File, name string, flags int) (*os.File, error) {
	fd, err := syscall.Openat(int(folder.Fd()), name, flags|syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
