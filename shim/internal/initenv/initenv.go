// Package initenv reads, from the host, the environment in which a container's command was started.
//
// The container is the tenant's: what it shows is bounded and parsed as hostile text.
package initenv

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/node"
)

const (
	// The kernel lets no program start with more, whatever its limit of the stack is.
	maxSize = 6 << 20
	// Both in the bundle, which only root can enter and which ends with the container.
	snapshot = "flox-environ" // what older versions kept of the first process
	inVain   = "flox-waited"  // somebody has waited for this container, and in vain
)

var (
	errNotYet = errors.New("the container has not entered the environment yet: its hook still runs, or the program has " +
		"removed what was kept of it; the command gets FLOX_ENV and PATH")
	errGone   = errors.New("the container's first process has ended")
	errTooBig = errors.New("the environment of the container's first process is larger than 6 MiB")
)

// Read gives the environment in which the command of the container in a bundle was started.
//
// The launcher leaves it in the container right before it becomes the command; until then this waits, at most for
// patience, and only once for a container: a probe that runs every second should not wait every second. Containers of
// older versions have no launcher, and the environment is what their first process shows.
func Read(bundle string, patience time.Duration) ([]string, error) {
	if data, err := readFile(filepath.Join(bundle, snapshot)); err == nil {
		return parse(data), nil
	}
	pid, err := readPid(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(bundle, inVain)); err == nil {
		patience = 0
	}
	deadline := time.Now().Add(patience)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		env, err := look(pid)
		if err == nil || !errors.Is(err, errNotYet) && !errors.Is(err, errGone) {
			return env, err
		}
		if time.Now().Add(pause).After(deadline) {
			if patience > 0 {
				_ = node.WriteFile(filepath.Join(bundle, inVain), nil, 0o600)
			}
			return nil, err
		}
		time.Sleep(pause)
	}
}

func look(pid int) ([]string, error) {
	process := "/proc/" + strconv.Itoa(pid)
	var data []byte
	err := inMounts(process, func() (err error) {
		data, err = readKept(activation.RuntimeDir)
		return err
	})
	if err == nil {
		return parse(data), nil
	}
	data, err = readFile(process + "/environ")
	switch {
	case err != nil:
		return nil, err
	case len(data) == 0: // a zombie, or a process between two programs
		return nil, errGone
	}
	if env := parse(data); activation.Has(env, "FLOX_ENV") {
		return env, nil
	}
	return nil, errNotYet
}

// readKept reads what the launcher left in its folder. The folder is a file system of the container's memory, so that
// nobody serves it; the file must be a plain one, and no symlink is followed.
func readKept(folder string) ([]byte, error) {
	const openPath, tmpfs = 0x200000, 0x01021994
	at, err := syscall.Open(folder, openPath|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(at)
	var system syscall.Statfs_t
	if err := syscall.Fstatfs(at, &system); err != nil {
		return nil, err
	}
	if system.Type != tmpfs {
		return nil, errors.New("the folder of the launcher is another file system")
	}
	const flags = syscall.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_NONBLOCK | syscall.O_CLOEXEC
	fd, err := syscall.Openat(at, activation.KeptEnvironment, flags, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	var info syscall.Stat_t
	if err := syscall.Fstat(fd, &info); err != nil || info.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, errors.New("what the launcher left is no file")
	}
	data, err := node.ReadAll(fd, maxSize)
	if errors.Is(err, node.ErrTooLarge) {
		err = errTooBig
	}
	return data, err
}

func readPid(path string) (int, error) {
	data, err := readFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err == nil && pid <= 1 {
		err = errors.New(path + " holds no process id")
	}
	return pid, err
}

func readFile(path string) ([]byte, error) {
	data, err := node.Read(path, maxSize)
	if errors.Is(err, node.ErrTooLarge) {
		err = errTooBig
	}
	return data, err
}

// parse keeps what can be part of a process file: NAME=value in valid UTF-8. The first of several entries of one name
// counts, as for getenv.
func parse(data []byte) []string {
	entries := bytes.Split(data, []byte{0})
	seen := make(map[string]bool, len(entries))
	env := make([]string, 0, len(entries))
	for _, entry := range entries {
		text := string(entry)
		name, _, found := strings.Cut(text, "=")
		if !found || name == "" || seen[name] || !utf8.ValidString(text) {
			continue
		}
		seen[name] = true
		env = append(env, text)
	}
	return activation.Restore(env)
}
