package view

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"flox.dev/flox-node/shim/internal/node"
)

// overlay lays the closure over the store that the container has: each path in its place, read-only.
//
// What is there is the image's author's. No symlink in it is followed: a place is opened as itself, and what is mounted
// is mounted on what was opened.
func overlay(rootfs string, closure []string) error {
	store, err := openStore(rootfs)
	if err != nil {
		return fmt.Errorf("the image's /nix/store cannot be used: %w", err)
	}
	defer syscall.Close(store)
	for _, name := range closure {
		if err := layOver(store, name); err != nil {
			return fmt.Errorf("/nix/store/%s cannot be shown: %w", name, err)
		}
	}
	return nil
}

func openStore(rootfs string) (int, error) {
	folder, err := syscall.Open(rootfs, openPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"nix", "store"} {
		err := syscall.Mkdirat(folder, name, 0o755)
		if err != nil && !errors.Is(err, syscall.EEXIST) {
			_ = syscall.Close(folder)
			return 0, err
		}
		next, err := syscall.Openat(folder, name, openPath|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
		_ = syscall.Close(folder)
		if err != nil {
			return 0, err
		}
		folder = next
	}
	return folder, nil
}

func layOver(store int, name string) error {
	source := node.Path("/nix/store/" + name)
	var info syscall.Stat_t
	if err := syscall.Lstat(source, &info); err != nil {
		return err
	}
	kind := info.Mode & syscall.S_IFMT
	if kind == syscall.S_IFLNK {
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		place := filepath.Join("/proc/self/fd", strconv.Itoa(store), name)
		if err := os.Symlink(link, place); err != nil {
			if there, failed := os.Readlink(place); failed != nil || there != link {
				return err
			}
		}
		return nil
	}
	flags := openPath | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	place, err := syscall.Openat(store, name, flags, 0)
	if errors.Is(err, syscall.ENOENT) {
		if err := makePlace(store, name, kind == syscall.S_IFDIR); err != nil {
			return err
		}
		place, err = syscall.Openat(store, name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer syscall.Close(place)
	var there syscall.Stat_t
	if err := syscall.Fstat(place, &there); err != nil {
		return err
	}
	if there.Mode&syscall.S_IFMT != kind {
		return errors.New("the image has something of another kind there")
	}
	if err := syscall.Mount(source, "/proc/self/fd/"+strconv.Itoa(place), "", syscall.MS_BIND, ""); err != nil {
		return err
	}
	// What was opened lies below the new mount; the same name leads to it.
	top, err := syscall.Openat(store, name, flags, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(top)
	return closeMount("/proc/self/fd/" + strconv.Itoa(top))
}

func makePlace(store int, name string, folder bool) error {
	if folder {
		return syscall.Mkdirat(store, name, 0o755)
	}
	file, err := syscall.Openat(store, name, syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	return syscall.Close(file)
}
