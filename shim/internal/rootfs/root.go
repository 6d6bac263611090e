package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"syscall"
)

// IDs are a user and a group, as the host numbers them.
type IDs struct{ UID, GID int }

// Root is a container's root file system before its container is created, to look at and to add to. Nothing that the
// image has is ever replaced. Paths are the container's: symlinks of the image are followed as in the container, so they
// never lead out of it, and what is opened in the end is opened one component at a time without following any.
type Root struct {
	folder *os.File
	owner  IDs
}

// Open opens a root file system. What is added belongs to owner, the container's root user.
func Open(rootfs string, owner IDs) (*Root, error) {
	folder, err := openFolder(rootfs)
	if err != nil {
		return nil, err
	}
	return &Root{folder, owner}, nil
}

// Close closes it.
func (r *Root) Close() { _ = r.folder.Close() }

// Resolve gives the path without symlinks, and says whether there is something.
func (r *Root) Resolve(name string) (resolved string, found bool, err error) {
	resolved, found = "/", true
	for rest, links := components(name), 0; len(rest) > 0; {
		component := rest[0]
		rest = rest[1:]
		if component == ".." {
			resolved = path.Dir(resolved)
			continue
		}
		next := path.Join(resolved, component)
		target, err := r.readlink(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			found = false
		case err != nil:
			return "", false, err
		case target != "":
			if links++; links > maxSymlinks {
				return "", false, fmt.Errorf("%s: %w", name, syscall.ELOOP)
			}
			if path.IsAbs(target) {
				resolved = "/"
			}
			rest = append(components(target), rest...)
			continue
		}
		resolved = next
	}
	return resolved, found, nil
}

// Has says that the image has something at a path, be it a symlink that leads nowhere.
func (r *Root) Has(name string) bool {
	_, found, err := r.place(name)
	return found || err != nil
}

// place is Resolve without following the last component.
func (r *Root) place(name string) (resolved string, found bool, err error) {
	above, found, err := r.Resolve(path.Dir(name))
	if err != nil {
		return "", false, err
	}
	resolved = path.Join(above, path.Base(name))
	if found {
		if _, err = r.readlink(resolved); errors.Is(err, fs.ErrNotExist) {
			return resolved, false, nil
		}
	}
	return resolved, found, err
}

// Read gives the content of a regular file that is not larger than limit bytes.
func (r *Root) Read(name string, limit int64) ([]byte, error) {
	resolved, _, err := r.Resolve(name)
	if err != nil {
		return nil, err
	}
	above, err := r.walk(path.Dir(resolved), false)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	file, err := open(above, path.Base(resolved), syscall.O_NONBLOCK) // it may be a pipe
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is no file, or larger than %d bytes", name, limit)
	}
	return io.ReadAll(io.LimitReader(file, limit))
}

// Names lists a folder; nothing when there is none.
func (r *Root) Names(name string) []string {
	resolved, found, err := r.Resolve(name)
	if err != nil || !found {
		return nil
	}
	folder, err := r.walk(resolved, false)
	if err != nil {
		return nil
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1)
	return names
}

// Folder makes a folder of the given mode, and those above it, unless there is something already.
func (r *Root) Folder(name string, mode os.FileMode) error {
	return r.add(name, func(above *os.File, base string) error {
		if err := syscall.Mkdirat(int(above.Fd()), base, 0o700); err != nil {
			return err
		}
		made, err := open(above, base, syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer made.Close()
		return made.Chmod(mode)
	})
}

// File makes a file, unless there is something already.
func (r *Root) File(name string, content []byte, mode os.FileMode) error {
	return r.add(name, func(above *os.File, base string) error {
		const flags = syscall.O_CREAT | syscall.O_EXCL | syscall.O_WRONLY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
		fd, err := syscall.Openat(int(above.Fd()), base, flags, 0o600)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), name)
		defer file.Close()
		if _, err := file.Write(content); err != nil {
			return err
		}
		return file.Chmod(mode)
	})
}

// Link makes a symlink, and the folders above it, unless there is something already.
func (r *Root) Link(name, target string) error {
	return r.add(name, func(above *os.File, base string) error {
		// The standard library has no symlinkat; through /proc the open folder is the same one.
		return os.Symlink(target, "/proc/self/fd/"+strconv.Itoa(int(above.Fd()))+"/"+base)
	})
}

// Give makes a file or folder somebody else's.
func (r *Root) Give(name string, to IDs) error {
	resolved, _, err := r.place(name)
	if err != nil {
		return err
	}
	above, err := r.walk(path.Dir(resolved), false)
	if err != nil {
		return err
	}
	defer above.Close()
	const noFollow = 0x100 // AT_SYMLINK_NOFOLLOW
	return syscall.Fchownat(int(above.Fd()), path.Base(resolved), to.UID, to.GID, noFollow)
}

// add makes something new at a path, as the container's root user.
func (r *Root) add(name string, make func(above *os.File, base string) error) error {
	resolved, found, err := r.place(name)
	if err != nil {
		return err
	}
	if found {
		return fmt.Errorf("%s: %w", name, fs.ErrExist)
	}
	return r.asOwner(func() error {
		above, err := r.walk(path.Dir(resolved), true)
		if err != nil {
			return err
		}
		defer above.Close()
		return make(above, path.Base(resolved))
	})
}

// asOwner creates files as the container's root user: where the container has a user namespace, the host's root does
// not exist on the file system, and nothing can be created in its name.
func (r *Root) asOwner(create func() error) error {
	if r.owner == (IDs{os.Geteuid(), os.Getegid()}) {
		return create()
	}
	runtime.LockOSThread() // the ids of the file system are the thread's
	defer runtime.UnlockOSThread()
	defer func() {
		_ = syscall.Setfsgid(os.Getegid())
		_ = syscall.Setfsuid(os.Geteuid())
	}()
	if err := errors.Join(syscall.Setfsgid(r.owner.GID), syscall.Setfsuid(r.owner.UID)); err != nil {
		return err
	}
	return create()
}

// walk opens a folder by its resolved path. Missing ones are made where that is wanted, for every user to look into.
func (r *Root) walk(resolved string, make bool) (*os.File, error) {
	folder, err := open(r.folder, ".", syscall.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	for _, component := range components(resolved) {
		next, err := open(folder, component, syscall.O_DIRECTORY)
		if make && errors.Is(err, syscall.ENOENT) {
			if err = syscall.Mkdirat(int(folder.Fd()), component, 0o755); err == nil {
				next, err = open(folder, component, syscall.O_DIRECTORY)
			}
			if err == nil { // whatever containerd's umask is
				err = next.Chmod(0o755)
			}
		}
		_ = folder.Close()
		if err != nil {
			return nil, err
		}
		folder = next
	}
	return folder, nil
}

// readlink gives the target of a symlink whose folder is resolved; nothing when it is none.
func (r *Root) readlink(name string) (string, error) {
	above, err := r.walk(path.Dir(name), false)
	if err != nil {
		return "", err
	}
	defer above.Close()
	target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(above.Fd())) + "/" + path.Base(name))
	if errors.Is(err, syscall.EINVAL) {
		return "", nil
	}
	return target, err
}
