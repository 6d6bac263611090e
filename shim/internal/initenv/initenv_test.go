package initenv

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

func TestTheEnvironmentIsReadOnceAndThenKept(t *testing.T) {
	dir := bundle(t, "FLOX_ENV=/env", "A=1\n2", "=odd", "noequals", "B=\xff")
	for range 2 {
		env, err := Read(dir, time.Second)
		if err != nil || strings.Join(env, "|") != "FLOX_ENV=/env|A=1\n2" {
			t.Fatalf("%q, %v", env, err)
		}
		if err := os.Remove(filepath.Join(dir, "init.pid")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, snapshot)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
}

func TestAProcessThatHasNotEnteredTheEnvironmentIsWaitedForABoundedTime(t *testing.T) {
	dir := bundle(t, "A=1", "NOT_FLOX_ENV=1")
	began := time.Now()
	if _, err := Read(dir, 50*time.Millisecond); err != errNotYet {
		t.Fatal(err)
	}
	if time.Since(began) > 10*time.Second {
		t.Fatal("too long")
	}
	if _, err := os.Stat(filepath.Join(dir, snapshot)); !os.IsNotExist(err) {
		t.Fatal("an environment from before the activation was kept")
	}
}

func TestAHugeEnvironmentIsNotCutButRefused(t *testing.T) {
	env := []string{"FLOX_ENV=/env"}
	for i := range 12 {
		env = append(env, "A"+strconv.Itoa(i)+"="+strings.Repeat("x", 100<<10))
	}
	if _, err := Read(bundle(t, env...), time.Second); err != errTooBig {
		t.Fatal(err)
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

func TestAZombieDoesNotRun(t *testing.T) {
	command := exec.Command("/bin/true")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = command.Wait() }()
	dir := at(t, command.Process.Pid)
	for deadline := time.Now().Add(time.Minute); Runs(dir); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it still runs")
		}
	}
	if !Runs(bundle(t)) {
		t.Fatal("a sleeping process runs")
	}
}

func init() {
	if os.Getenv("LEADERLESS") != "" { // this program again: its first thread ends, and another one goes on
		runtime.LockOSThread()
		go func() { time.Sleep(time.Minute); os.Exit(0) }()
		syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
	}
}

func TestAProcessRunsUntilItsLastThreadHasEnded(t *testing.T) {
	command := exec.Command(os.Args[0])
	command.Env = []string{"LEADERLESS=1"}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	dir, stat := at(t, command.Process.Pid), fmt.Sprintf("/proc/%d/stat", command.Process.Pid)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if data, err := os.ReadFile(stat); err == nil && strings.Contains(string(data), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its first thread does not end")
		}
	}
	if !Runs(dir) {
		t.Fatal("another thread runs")
	}
	_ = command.Process.Kill()
	_ = command.Wait()
	if Runs(dir) {
		t.Fatal("it was killed")
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
