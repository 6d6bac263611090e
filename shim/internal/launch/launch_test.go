package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"flox.dev/flox-node/shim/internal/activation"
)

// The test binary is the launcher when it is called as that.
func TestMain(m *testing.M) {
	if Called(os.Args) {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func launch(t *testing.T, env []string, argv ...string) (status int, stdout, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, failure strings.Builder
	command := exec.Cmd{
		Path: self, Args: append([]string{activation.Launcher}, argv...), Env: env, Stdout: &out, Stderr: &failure,
	}
	_ = command.Run()
	told := strings.TrimSuffix(failure.String(), "warning: GOCOVERDIR not set, no coverage data emitted\n") // `make coverage`
	return command.ProcessState.ExitCode(), out.String(), told
}

func TestTheCommandIsFoundAsExecvpDoes(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"one/denied": "#!/bin/sh\n", "two/denied": "#!/bin/sh\necho two\n", "one/only-denied": "x", "one/plain": "echo plain $1\n",
		"one/lost": "#!/nonesuch/interpreter\n", "one/folder/x": "", "file": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o755)
		if strings.HasSuffix(name, "denied") && strings.HasPrefix(name, "one") {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	path := "PATH=" + dir + "/file:" + dir + "/nonesuch:" + dir + "/one:" + dir + "/two:/usr/bin:/bin"
	for _, test := range []struct {
		argv   []string
		status int
		text   string
	}{
		{[]string{"denied"}, 0, "two\n"},
		{[]string{"plain", "argument"}, 0, "plain argument\n"},
		{[]string{"sh", "-c", "exit 7"}, 7, ""},
		{[]string{"printf", "%s|", "", "a b", "*", "\xff"}, 0, "|a b|*|\xff|"},
		{[]string{"nonesuch"}, 127, "flox: nonesuch: command not found in PATH\n"},
		{[]string{""}, 127, "flox: : command not found in PATH\n"},
		{[]string{"/no/such"}, 127, "flox: /no/such: no such file\n"},
		{[]string{dir + "/file/x"}, 127, "/file/x: no such file\n"},
		{[]string{"lost"}, 127, "flox: lost: command not found in PATH\n"},
		{[]string{dir + "/one/lost"}, 127, "/one/lost: the interpreter or loader that it names was not found\n"},
		{[]string{"only-denied"}, 126, "flox: only-denied: cannot be executed: permission denied\n"},
		{[]string{"folder"}, 126, "flox: folder: cannot be executed: permission denied\n"},
		{[]string{"/etc/passwd"}, 126, "flox: /etc/passwd: cannot be executed: permission denied\n"},
		{[]string{dir + "/one/folder"}, 126, "cannot be executed: permission denied\n"},
		{nil, 127, "flox: there is no command\n"},
	} {
		status, stdout, stderr := launch(t, []string{path}, test.argv...)
		if status != test.status || !strings.HasSuffix(stdout+stderr, test.text) && !strings.HasPrefix(stdout, test.text) {
			t.Errorf("%q: %d, %q, %q", test.argv, status, stdout, stderr)
		}
	}
}

func TestTheCommandGetsItsVariablesUnderTheirOwnNames(t *testing.T) {
	env := []string{"PATH=/usr/bin:/bin", "FLOX_NODE_LATER_ENV=prod", "A.B=1", "FLOX_NODE_LATER_PS4=x", "PS4=hook", "EMPTY="}
	status, stdout, _ := launch(t, env, "env")
	if status != 0 || stdout != "PATH=/usr/bin:/bin\nENV=prod\nA.B=1\nPS4=hook\nEMPTY=\n" {
		t.Errorf("%d, %q", status, stdout)
	}
}

func TestOnlyTheContainersUserReadsWhatIsKept(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o777))
	dir := t.TempDir()
	if err := os.Symlink("/nonesuch", filepath.Join(dir, "environ.new")); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"first", "second"} {
		if err := keep(dir, []string{"A=" + value, "B=1\n2"}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || string(data) != "A="+value+"\x00B=1\n2" {
			t.Errorf("%q, %v", data, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "environ"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%v", entries)
	}
	if err := keep(filepath.Join(dir, "nonesuch"), nil); err == nil {
		t.Error("a missing folder")
	}
}
