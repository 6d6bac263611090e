package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Where Linux distributions put runc, when the policy names no inner runtime.
var usualRuntimes = []string{"/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc"}

var errOurselves = errors.New("it is flox-runtime itself")

// ExecInner becomes the inner runtime, with the arguments and the environment of this process.
//
// It returns only when it failed. The runtime that the policy names is the only one for a strict call (create: a
// container must not silently run under another runtime than the node's); other calls then try the usual places,
// because a damaged policy must not keep containers from being stopped.
func ExecInner(policy Policy, strict bool, arguments []string) error {
	var candidates []string
	if policy.InnerRuntime != "" {
		candidates = append(candidates, policy.InnerRuntime)
	}
	if policy.InnerRuntime == "" || !strict {
		for _, usual := range usualRuntimes {
			candidates = append(candidates, Path(usual))
		}
	}
	var failures []error
	for _, candidate := range candidates {
		err := notOurselves(candidate)
		if err == nil {
			err = syscall.Exec(candidate, append([]string{candidate}, arguments...), os.Environ())
		}
		failures = append(failures, fmt.Errorf("%s: %w", candidate, err))
	}
	if policy.InnerRuntime == "" {
		return fmt.Errorf("no inner runtime (%w): install runc, or set `inner_runtime` in the policy "+
			"(flox-node policy apply)", errors.Join(inOneLine(failures)...))
	}
	return fmt.Errorf("inner runtime %w: set `inner_runtime` in the policy to the OCI runtime of this node "+
		"(flox-node policy apply)", failures[0])
}

// inOneLine leaves only the first failure that says more than that there is no such file.
func inOneLine(failures []error) []error {
	for _, failure := range failures {
		if !errors.Is(failure, syscall.ENOENT) {
			return []error{failure}
		}
	}
	return failures[:1]
}

// notOurselves refuses a path that leads back to this program, through whatever symlinks, or to another version of it.
func notOurselves(path string) error {
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
	return nil
}
