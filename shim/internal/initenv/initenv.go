// Package initenv reads the environment of a container's first process from the host.
//
// The process is the tenant's: what it shows is bounded and parsed as hostile text.
package initenv

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/node"
)

const (
	maxSize    = 1 << 20
	numThreads = 17             // among the fields of a process' stat that follow its name, see proc(5)
	snapshot   = "flox-environ" // in the bundle, which only root can enter and which ends with the container
)

var (
	errNotYet = errors.New("the container's first process has not entered the environment yet")
	errGone   = errors.New("the container's first process has ended")
	errTooBig = errors.New("the environment of the container's first process is larger than 1 MiB")
)

// Read gives the environment of the first process of the container in a bundle.
//
// The process has it only from its last execve on, so until then this waits, at most for patience. The first good
// answer is kept in the bundle: programs may later overwrite what /proc shows of them (setproctitle), and a probe
// that runs every second should cost what a probe costs.
func Read(bundle string, patience time.Duration) ([]string, error) {
	if data, err := readFile(filepath.Join(bundle, snapshot)); err == nil {
		return parse(data), nil
	}
	pid, err := readPid(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(patience)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		data, err := readFile("/proc/" + strconv.Itoa(pid) + "/environ")
		switch {
		case err != nil:
			return nil, err
		case len(data) == 0: // a zombie, or a process between two programs
			err = errGone
		case activation.Has(parse(data), "FLOX_ENV"):
			_ = node.WriteFile(filepath.Join(bundle, snapshot), data, 0o600)
			return parse(data), nil
		default:
			err = errNotYet
		}
		if time.Now().Add(pause).After(deadline) {
			return nil, err
		}
		time.Sleep(pause)
	}
}

// Runs says that the first process of the container in a bundle has not ended.
func Runs(bundle string) bool {
	pid, err := readPid(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return false
	}
	stat, err := readFile("/proc/" + strconv.Itoa(pid) + "/stat")
	// `pid (name) state ...`, and the name is the process' own choice.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if err != nil || len(fields) <= numThreads {
		return false
	}
	// The state is the first thread's. It ends before the others do, and when another one executes a program.
	ended := fields[0][0] == 'Z' || fields[0][0] == 'X'
	threads, _ := strconv.Atoi(string(fields[numThreads]))
	return !ended || threads > 1
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
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err == nil && len(data) > maxSize {
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
	return env
}
