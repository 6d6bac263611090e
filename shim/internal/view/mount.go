package view

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/spec"
)

const (
	openPath   = 0x200000 // O_PATH
	tmpfsMagic = 0x01021994
	noexec     = 0x8 // both of statfs(2) and of mount(2)
	maxState   = 1 << 20
)

// HookCommand is this program's first argument when a runtime calls it as a hook.
const HookCommand = "flox-mount-view"

const hookTimeout = 30 // seconds; it takes milliseconds

// AddStore shows the container the node's whole store.
func AddStore(config *spec.Config) error {
	return config.AddMount(spec.Mount{
		Destination: "/nix/store", Type: "bind", Source: node.Path("/nix/store"),
		Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev"},
	})
}

// Base is what the closure is shown in.
type Base string

const (
	// Own is an empty file system of ours, read-only: the closure and nothing else.
	Own Base = "own"
	// Present is the folder that the container has at /nix, of its image or of a mount that is there already. The
	// closure is laid over what it holds, and it stays as writable as it is.
	Present Base = "present"
)

// closureFile is the bundle's file with the names that the hook shows.
const closureFile = "flox-closure"

// Add has the closure, names below /nix/store, shown to the container: the runtime calls Mount for it.
func Add(config *spec.Config, bundle, rootfs string, closure []string, base Base) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	list := filepath.Join(bundle, closureFile)
	if err := node.WriteFile(list, []byte(strings.Join(closure, "\n")), 0o400); err != nil {
		return err
	}
	if base == Own {
		err := config.AddMount(spec.Mount{
			Destination: "/nix", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"rprivate", "nosuid", "nodev", "mode=0755", "size=4k"},
		})
		if err != nil {
			return err
		}
	}
	return config.AddHook(spec.Hook{
		Path: program, Args: []string{program, HookCommand, rootfs, list, string(base), config.MountLabel},
		Timeout: hookTimeout,
	})
}

// Mount is the hook: it fills the /nix of a container that is being created. The state that the runtime writes names
// the container's first process, whose mounts still hold the host's. It runs outside the container's cgroup, so that
// no limit of the pod slows it.
func Mount(arguments []string, state io.Reader) error {
	if len(arguments) != 4 {
		return fmt.Errorf("%s takes ROOTFS CLOSURE BASE LABEL", HookCommand)
	}
	rootfs, list, base, label := arguments[0], arguments[1], Base(arguments[2]), arguments[3]
	data, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	closure := strings.Split(string(data), "\n")
	var container struct {
		Pid int `json:"pid"`
	}
	data, err = io.ReadAll(io.LimitReader(state, maxState))
	if err == nil {
		err = json.Unmarshal(data, &container)
	}
	if err != nil || container.Pid <= 0 {
		return fmt.Errorf("the container's state cannot be read (%v)", err)
	}
	// Neither the thread nor what it sees is used again: this program ends here.
	runtime.LockOSThread()
	syscall.Umask(0o022)
	if err := enter(container.Pid); err != nil {
		return fmt.Errorf("the container's mounts cannot be reached: %w", err)
	}
	if base == Present {
		return overlay(rootfs, closure)
	}
	if err := cover(rootfs, label, len(closure)); err != nil {
		return fmt.Errorf("the container's /nix cannot be made: %w", err)
	}
	return fill(closure)
}

// enter makes this thread see what the process sees.
func enter(pid int) error {
	file, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/mnt"))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := syscall.Unshare(syscall.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if _, _, errno := syscall.RawSyscall(sysSetns, file.Fd(), syscall.CLONE_NEWNS, 0); errno != 0 {
		return os.NewSyscallError("setns", errno)
	}
	return nil
}

// cover mounts an empty file system of ours over the mount that the runtime made at /nix, and goes there. The runtime's
// own may belong to a user namespace in which we are nobody.
func cover(rootfs, label string, paths int) error {
	place, err := openPlace(rootfs)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("mode=0755,size=1m,nr_inodes=%d", paths+16)
	if label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	err = syscall.Mount("tmpfs", "/proc/self/fd/"+strconv.Itoa(place), "tmpfs",
		syscall.MS_NOSUID|syscall.MS_NODEV, options)
	_ = syscall.Close(place)
	if err != nil {
		return os.NewSyscallError("mount", err)
	}
	if place, err = openPlace(rootfs); err != nil {
		return err
	}
	if err := syscall.Fchdir(place); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	return os.NewSyscallError("mount", syscall.Mount("", ".", "", syscall.MS_PRIVATE, ""))
}

func openPlace(rootfs string) (int, error) {
	root, err := syscall.Open(rootfs, openPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer syscall.Close(root)
	flags := openPath | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	place, err := syscall.Openat(root, "nix", flags, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: rootfs + "/nix", Err: err}
	}
	var above, there syscall.Stat_t
	var system syscall.Statfs_t
	err = errors.Join(syscall.Fstat(root, &above), syscall.Fstat(place, &there), syscall.Fstatfs(place, &system))
	if err != nil || above.Dev == there.Dev || system.Type != tmpfsMagic {
		_ = syscall.Close(place)
		return 0, fmt.Errorf("the runtime mounted nothing of ours at %s/nix (%v)", rootfs, err)
	}
	return place, nil
}

// fill binds the store paths into the current folder, read-only, and closes it.
func fill(closure []string) error {
	const all = ".all" // the whole store, once, with the flags that every bind out of it inherits
	for _, folder := range []string{"store", all} {
		if err := syscall.Mkdir(folder, 0o755); err != nil {
			return os.NewSyscallError("mkdir", err)
		}
	}
	if err := readOnly(node.Path("/nix/store"), all); err != nil {
		return err
	}
	for _, name := range closure {
		if err := place(all+"/"+name, "store/"+name); err != nil {
			return fmt.Errorf("/nix/store/%s cannot be shown: %w", name, err)
		}
	}
	if err := syscall.Unmount(all, syscall.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	if err := syscall.Rmdir(all); err != nil {
		return os.NewSyscallError("rmdir", err)
	}
	const flags = syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV
	return os.NewSyscallError("mount", syscall.Mount("", ".", "", flags, ""))
}

func readOnly(source, target string) error {
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("the store cannot be mounted: %w", err)
	}
	return closeMount(target)
}

// closeMount makes a mount private and read-only, and takes from it what gives rights.
func closeMount(target string) error {
	if err := syscall.Mount("", target, "", syscall.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	var system syscall.Statfs_t
	if err := syscall.Statfs(target, &system); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	const flags = syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV
	return os.NewSyscallError("mount", syscall.Mount("", target, "", flags|uintptr(system.Flags)&noexec, ""))
}

// place shows one store path at another one's place: a folder or a file as itself, a symlink as its like.
func place(source, target string) error {
	var info syscall.Stat_t
	if err := syscall.Lstat(source, &info); err != nil {
		return err
	}
	switch info.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return syscall.Symlink(link, target)
	case syscall.S_IFDIR:
		if err := syscall.Mkdir(target, 0o755); err != nil {
			return err
		}
	case syscall.S_IFREG:
		file, err := syscall.Open(target, syscall.O_CREAT|syscall.O_EXCL|syscall.O_CLOEXEC, 0o444)
		if err != nil {
			return err
		}
		_ = syscall.Close(file)
	default:
		return fmt.Errorf("it is of a kind that a store does not have")
	}
	return syscall.Mount(source, target, "", syscall.MS_BIND, "")
}
