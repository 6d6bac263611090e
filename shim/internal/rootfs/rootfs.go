// Package rootfs looks at a container's root file system from the host.
//
// Its content is the image's author's: symlinks in it may point anywhere on the host. Names are looked up one component
// at a time from an open folder, and no symlink is followed.
package rootfs

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// HasNix says that the image brings a /nix of its own: a folder with something in it. Anything else there is an error.
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
		return false, errors.New("it is no folder")
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
