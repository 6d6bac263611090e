package initenv

import (
	"errors"
	"os"
	"runtime"
	"syscall"
)

// The standard library has no number for it on every architecture.
var setns = map[string]uintptr{"amd64": 308, "arm64": 268}

// inMounts does something with the mounts of a process: what its container was started with, and not the folder that the
// process may since have made its root.
func inMounts(process string, do func() error) error {
	number, known := setns[runtime.GOARCH]
	if !known {
		return errors.New("mount namespaces cannot be entered on " + runtime.GOARCH)
	}
	namespace, err := os.Open(process + "/ns/mnt")
	if err != nil {
		return err
	}
	defer namespace.Close()
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked, so it ends with this function and takes the mounts with it.
		runtime.LockOSThread()
		if err := syscall.Unshare(syscall.CLONE_FS); err != nil {
			done <- err
			return
		}
		if _, _, failure := syscall.RawSyscall(number, namespace.Fd(), syscall.CLONE_NEWNS, 0); failure != 0 {
			done <- failure
			return
		}
		done <- do()
	}()
	return <-done
}
