package initenv

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// bundle makes a bundle whose first process is a sleep with the given environment.
func bundle(t *testing.T, env ...string) string {
	t.Helper()
	command := exec.Command("/bin/sleep", "60")
	command.Env = env
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
	return at(t, command.Process.Pid)
}

func at(t *testing.T, pid int) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "init.pid"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTheFirstProcessIsAskedWhereThereIsNoLauncher(t *testing.T) {
	dir := bundle(t, "FLOX_ENV=/env", "A=1\n2", "=odd", "noequals", "B=\xff", "FLOX_NODE_LATER_ENV=prod")
	for range 2 {
		env, err := Read(dir, time.Second)
		if err != nil || strings.Join(env, "|") != "FLOX_ENV=/env|A=1\n2|ENV=prod" {
			t.Fatalf("%q, %v", env, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("an exec leaves something: %v", entries)
	}
}

func TestWhatAnOlderVersionKeptCounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, snapshot), []byte("FLOX_ENV=/env\x00A=1\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if env, err := Read(dir, time.Minute); err != nil || strings.Join(env, "|") != "FLOX_ENV=/env|A=1" {
		t.Fatalf("%q, %v", env, err)
	}
}

func TestNobodyWaitsInVainTwice(t *testing.T) {
	dir := bundle(t, "A=1", "NOT_FLOX_ENV=1")
	if _, err := Read(dir, 50*time.Millisecond); err != errNotYet {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := Read(dir, 24*time.Hour)
		done <- err
	}()
	if err := <-done; err != errNotYet {
		t.Fatal(err)
	}
}

// kept makes the launcher's folder, in memory.
func kept(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "flox-initenv-")
	if err != nil {
		t.Skip("no file system in memory at /dev/shm: ", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestWhatTheLauncherLeftIsReadAndNothingElse(t *testing.T) {
	for name, test := range map[string]struct {
		lay  func(path string) error
		good bool
	}{
		"a file":  {func(path string) error { return os.WriteFile(path, []byte("A=1\x00B=2"), 0o600) }, true},
		"nothing": {func(string) error { return nil }, false},
		"a link":  {func(path string) error { return os.Symlink("/etc/passwd", path) }, false},
		"a pipe":  {func(path string) error { return syscall.Mkfifo(path, 0o600) }, false},
		"a folder": {
			func(path string) error { return os.Mkdir(path, 0o700) }, false,
		},
		"too much": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, maxSize+1))
		}, false},
	} {
		dir := kept(t)
		if err := test.lay(filepath.Join(dir, "environ")); err != nil {
			t.Fatal(err)
		}
		data, err := readKept(dir)
		if (err == nil) != test.good || test.good && string(data) != "A=1\x00B=2" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	disk := t.TempDir()
	if err := os.WriteFile(filepath.Join(disk, "environ"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(kept(t), "link")
	if err := os.Symlink(kept(t), link); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{disk, link, "/nonesuch"} {
		if _, err := readKept(folder); err == nil {
			t.Errorf("%s is taken", folder)
		}
	}
}

func TestALargeEnvironmentIsNotCut(t *testing.T) {
	env := []string{"FLOX_ENV=/env"}
	for i := range 12 {
		env = append(env, "A"+strconv.Itoa(i)+"="+strings.Repeat("x", 100<<10))
	}
	if got, err := Read(bundle(t, env...), time.Second); err != nil || len(got) != len(env) {
		t.Fatal(len(got), err)
	}
}

func TestAMissingProcessIsAnErrorAtOnce(t *testing.T) {
	began := time.Now()
	if _, err := Read(at(t, 1<<22+1), time.Minute); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := Read(t.TempDir(), time.Minute); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := Read(at(t, 1), time.Minute); err == nil {
		t.Fatal("the host's init is no container's first process")
	}
	if time.Since(began) > 10*time.Second {
		t.Fatal("too long")
	}
}

func TestAProcessThatEntersTheEnvironmentLaterIsWaitedFor(t *testing.T) {
	command := exec.Command("/bin/sh", "-c", "sleep 0.2; FLOX_ENV=/env exec sleep 60")
	command.Env = []string{"PATH=/usr/bin:/bin"}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = command.Process.Kill(); _ = command.Wait() }()
	env, err := Read(at(t, command.Process.Pid), time.Minute)
	if err != nil || !slices.Contains(env, "FLOX_ENV=/env") {
		t.Fatalf("%q, %v", env, err)
	}
}

func TestTheFirstOfTwoEntriesCounts(t *testing.T) {
	if env := parse([]byte("A=1\x00A=2\x00")); len(env) != 1 || env[0] != "A=1" {
		t.Fatalf("%q", env)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("A=1\x00B=2\x00\x00=\x00A=3\x00\xff=1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		env := parse(data)
		for _, entry := range env {
			if name, _, found := strings.Cut(entry, "="); !found || name == "" || !utf8.ValidString(entry) || strings.Contains(entry, "\x00") {
				t.Fatalf("%q", entry)
			}
		}
		encoded, err := json.Marshal(env)
		var decoded []string
		if err != nil || json.Unmarshal(encoded, &decoded) != nil || strings.Join(decoded, "\x00") != strings.Join(env, "\x00") {
			t.Fatalf("%q", env)
		}
	})
}
