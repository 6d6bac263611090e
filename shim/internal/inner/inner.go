// Package inner finds the OCI runtime behind the shim, and becomes it.
//
// A container belongs to the runtime that created it: only that one knows its state. So create keeps the runtime's path
// in the bundle, and every later call of the container uses it, whatever the policy says by then.
package inner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"syscall"

	"flox.dev/flox-node/shim/internal/node"
)

// Where Linux distributions put their OCI runtimes, when the policy names none.
var (
	usualFolders = []string{"/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"}

	errOurselves = errors.New("it is flox-runtime itself")
)

// ForNew gives the runtime of a container that is to be created: the one that the policy names and no other, because a
// container must not silently run under another runtime than the node's.
func ForNew(policy node.Policy) (string, error) {
	if named := policy.InnerRuntime; named != "" {
		if err := usable(named); err != nil {
			return "", unusable(named, err)
		}
		return named, checkVersion(named)
	}
	runtime, err := usual("runc")
	if err != nil {
		return "", err
	}
	return runtime, nil
}

// ForAny gives the runtime of a call that belongs to no container that is known: that of the policy, else the usual
// one. A damaged policy must not keep containers from being stopped.
func ForAny(policy node.Policy) (string, error) {
	named := policy.InnerRuntime
	if named == "" {
		return usual("runc")
	}
	problem := usable(named)
	if problem == nil {
		return named, nil
	}
	if runtime, err := usual("runc"); err == nil {
		return runtime, nil
	}
	return "", unusable(named, problem)
}

// Become replaces this process by a runtime, with the arguments and the environment of this process. It returns only
// when it failed.
func Become(runtime string, arguments []string) error {
	return unusable(runtime, syscall.Exec(runtime, append([]string{runtime}, arguments...), os.Environ()))
}

// Run lets a runtime do a call and waits for its end; the status is the one to end with.
func Run(runtime string, arguments []string) (status int, err error) {
	// As if it were this very process: it ends with it. The death signal comes when the *thread* that started it ends.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	process, err := os.StartProcess(runtime, append([]string{runtime}, arguments...), &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, unusable(runtime, err)
	}
	state, err := process.Wait()
	if err != nil {
		return 0, err
	}
	if ended, ok := state.Sys().(syscall.WaitStatus); ok && ended.Signaled() {
		return 128 + int(ended.Signal()), nil
	}
	return state.ExitCode(), nil
}

func unusable(runtime string, err error) error {
	return fmt.Errorf("inner runtime %s: %w: set `inner_runtime` in the policy to the OCI runtime of this node "+
		"(flox-node policy apply)", runtime, err)
}

func usual(name string) (string, error) {
	var failure error
	for _, folder := range usualFolders {
		candidate := node.Path(filepath.Join(folder, name))
		err := usable(candidate)
		if err == nil {
			return candidate, nil
		}
		if failure == nil || !errors.Is(err, syscall.ENOENT) {
			failure = fmt.Errorf("%s: %w", candidate, err)
		}
	}
	return "", fmt.Errorf("no inner runtime (%w): install runc, or set `inner_runtime` in the policy "+
		"(flox-node policy apply)", failure)
}

// usable refuses a path that leads to nothing, or back to this program, through whatever symlinks, or to another
// version of it.
func usable(path string) error {
	if !filepath.IsAbs(path) {
		return errors.New("it is no absolute path")
	}
	const openPath = 0x200000 // O_PATH: no permission to read is needed, and no device or FIFO is opened
	fd, err := syscall.Open(path, openPath|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var theirs, ours syscall.Stat_t
	if err := syscall.Fstat(fd, &theirs); err != nil {
		return err
	}
	if err := syscall.Stat("/proc/self/exe", &ours); err != nil {
		return err
	}
	if theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
		return errOurselves
	}
	resolved, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err == nil && filepath.Base(resolved) == "flox-runtime" {
		return errOurselves
	}
	if theirs.Mode&syscall.S_IFMT != syscall.S_IFREG || theirs.Mode&0o111 == 0 {
		return syscall.EACCES
	}
	return nil
}
