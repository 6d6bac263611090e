package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The test binary is the double itself when it is started as that.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_DOUBLE") != "" || len(os.Args) > 1 && os.Args[1] == "dump-env" {
		main()
	}
	os.Exit(m.Run())
}

type fixture struct {
	dir     string
	context map[string]any
	env     []string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	environment := filepath.Join(dir, "environment")
	for _, folder := range []string{"cache", "environment/bin", "environment/activate.d"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lock := `{"manifest": {"vars": {"GREETING": "good morning"}}}`
	if err := os.WriteFile(filepath.Join(environment, "manifest.lock"), []byte(lock), 0o644); err != nil {
		t.Fatal(err)
	}
	return &fixture{dir, map[string]any{
		"flox_activate_store_path": environment, "activation_state_dir": filepath.Join(dir, "state"), "mode": "run",
		"shell": map[string]any{"bash": "/bin/sh"}, "remove_after_reading": false, "project_ctx": nil, "later": 1,
		"invocation_type": map[string]any{"execcommand": []string{"env"}},
		"attach_ctx": map[string]any{
			"env": environment, "env_cache": filepath.Join(dir, "cache"), "env_description": "demo/hello",
			"flox_active_environments": "[]", "prompt_color_1": "99", "prompt_color_2": "141",
			"flox_prompt_environments": "hello", "set_prompt": true, "flox_env_cuda_detection": "0",
			"interpreter_path": "/interpreter",
		},
	}, []string{"HOME=/", "PATH=/usr/bin:/bin", "BE_THE_DOUBLE=1"}}
}

func (f *fixture) hook(t *testing.T, text string) {
	t.Helper()
	hook := filepath.Join(f.dir, "environment/activate.d/hook-on-activate")
	if err := os.WriteFile(hook, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) run(t *testing.T) (stdout, stderr string, status int) {
	t.Helper()
	data, err := json.Marshal(f.context)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(f.dir, "ctx.json")
	if err := os.WriteFile(file, data, 0o444); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0], "activate", "--activate-data", file)
	var out, errors strings.Builder
	command.Env, command.Stdout, command.Stderr = f.env, &out, &errors
	_ = command.Run()
	return out.String(), errors.String(), command.ProcessState.ExitCode()
}

func TestTheCommandHasTheEnvironmentVarsAndHook(t *testing.T) {
	f := newFixture(t)
	f.hook(t, "echo noise\nexport HOOKED=yes\n")
	stdout, stderr, status := f.run(t)
	if status != 0 || stderr != "noise\n" {
		t.Fatalf("%d %q", status, stderr)
	}
	environment := filepath.Join(f.dir, "environment")
	for _, line := range []string{
		"FLOX_ENV=" + environment, "FLOX_ENV_DESCRIPTION=demo/hello", "FLOX_ENV_CACHE=" + filepath.Join(f.dir, "cache"),
		"PATH=" + environment + "/bin:/usr/bin:/bin", "GREETING=good morning", "HOOKED=yes",
	} {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("%s is missing in\n%s", line, stdout)
		}
	}
}

func TestEveryRequiredFieldIsMissed(t *testing.T) {
	for _, name := range []string{
		"flox_activate_store_path", "activation_state_dir", "mode", "shell", "remove_after_reading", "attach_ctx",
	} {
		f := newFixture(t)
		delete(f.context, name)
		if _, stderr, status := f.run(t); status != 1 || !strings.Contains(stderr, "missing field `"+name+"`") {
			t.Errorf("%s: %d %q", name, status, stderr)
		}
	}
	for name := range newFixture(t).context["attach_ctx"].(map[string]any) {
		f := newFixture(t)
		delete(f.context["attach_ctx"].(map[string]any), name)
		if _, stderr, status := f.run(t); status != 1 || !strings.Contains(stderr, "missing field `"+name+"`") {
			t.Errorf("%s: %d %q", name, status, stderr)
		}
	}
}

func TestWhatTheRealOneRefusesIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, f *fixture)
		text   string
	}{
		"no HOME":          {func(_ *testing.T, f *fixture) { f.env = f.env[1:] }, "failed to get home directory"},
		"mode":             {func(_ *testing.T, f *fixture) { f.context["mode"] = "build" }, "unknown variant `build`"},
		"type":             {func(_ *testing.T, f *fixture) { f.context["remove_after_reading"] = "no" }, "invalid type"},
		"state dir":        {func(_ *testing.T, f *fixture) { f.context["activation_state_dir"] = "/proc/state" }, "state directory"},
		"not found":        {func(_ *testing.T, f *fixture) { f.command("nonesuch") }, "nonesuch: command not found"},
		"foreign hook":     {func(_ *testing.T, f *fixture) { f.env = append(f.env, "_FLOX_PROMPT_HOOK_VERSION=0") }, "prompt hook"},
		"hook exits":       {func(t *testing.T, f *fixture) { f.hook(t, "exit 0\n") }, "script did not complete normally."},
		"hook execs":       {func(t *testing.T, f *fixture) { f.hook(t, "exec true\n") }, "script did not complete normally."},
		"hook fails":       {func(t *testing.T, f *fixture) { f.hook(t, "exit 3\n") }, "Running hook.on-activate failed"},
		"hook with set -e": {func(t *testing.T, f *fixture) { f.hook(t, "set -e\nfalse\n") }, "Running hook.on-activate failed"},
		"not executable":   {func(_ *testing.T, f *fixture) { f.command("/etc/passwd") }, "✘ ERROR: Permission denied (os error 13)"},
		"getopt":           {func(_ *testing.T, f *fixture) { f.env = append(f.env, "GETOPT_COMPATIBLE=") }, "Failed to parse options."},
		"cache is missing": {func(t *testing.T, f *fixture) { _ = os.Remove(filepath.Join(f.dir, "cache")) }, "cache"},
	} {
		f := newFixture(t)
		c.change(t, f)
		if stdout, stderr, status := f.run(t); status != 1 || !strings.Contains(stderr, c.text) || stdout != "" {
			t.Errorf("%s: %d %q %q", name, status, stdout, stderr)
		}
	}
	f := newFixture(t)
	f.env = append(f.env, "ODD=\xff")
	if _, _, status := f.run(t); status != 101 {
		t.Errorf("an environment that is no UTF-8 ended with %d", status)
	}
}

func (f *fixture) command(argv ...string) {
	f.context["invocation_type"] = map[string]any{"execcommand": argv}
}

func TestASecondProcessAttachesToALivingStartAndNotToADeadOne(t *testing.T) {
	f := newFixture(t)
	f.hook(t, "echo started\n")
	for range 2 {
		if _, stderr, status := f.run(t); status != 0 || stderr != "started\n" {
			t.Fatalf("%d %q", status, stderr)
		}
	}
	state, err := json.Marshal(newState("run", os.Getpid(), latestStart(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "state/state.json"), state, 0o600); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, status := f.run(t); status != 0 || stderr != "" || !strings.Contains(stdout, "GREETING=good morning") {
		t.Fatalf("%d %q %q", status, stdout, stderr)
	}
	f.context["mode"] = "dev"
	if _, stderr, status := f.run(t); status != 1 || !strings.Contains(stderr, "ModeMismatch") {
		t.Fatalf("%d %q", status, stderr)
	}
}

func latestStart(t *testing.T, f *fixture) string {
	t.Helper()
	folders, _ := filepath.Glob(filepath.Join(f.dir, "state/environment.*"))
	if len(folders) == 0 {
		t.Fatal("no start was recorded")
	}
	return folders[len(folders)-1]
}

func TestTheHookIsRunAsTheRealOneRunsIt(t *testing.T) {
	for name, hook := range map[string]string{"a failing last command": "false\n", "return": "return 3\n"} {
		f := newFixture(t)
		f.hook(t, "umask >"+f.dir+"/umask\nexport HOOKED=yes\nunset A\ncd /\n"+hook)
		f.env = append(f.env, "A=1", "B.C=2", "FLOX_ENV_PROJECT=/stale")
		stdout, stderr, status := f.run(t)
		lines := "\n" + stdout
		if status != 0 || !strings.Contains(lines, "\nHOOKED=yes\n") || !strings.Contains(lines, "\nB.C=2\n") {
			t.Errorf("%s: %d %q %q", name, status, stdout, stderr)
		}
		for _, gone := range []string{"A", "SHLVL", "_", "FLOX_ENV_PROJECT"} {
			if strings.Contains(lines, "\n"+gone+"=") {
				t.Errorf("%s: %s is set: %q", name, gone, stdout)
			}
		}
		if !strings.Contains(lines, "\nPWD=/\n") {
			t.Errorf("%s: the hook's folder is not told: %q", name, stdout)
		}
		if umask, _ := os.ReadFile(filepath.Join(f.dir, "umask")); strings.TrimSpace(string(umask)) != "0077" {
			t.Errorf("%s: umask %q", name, umask)
		}
	}
	f := newFixture(t)
	if stdout, _, _ := f.run(t); strings.Contains("\n"+stdout, "\nPWD=") {
		t.Error(stdout)
	}
}

func TestVariablesAreInterpretedInTheOrderOfTheirDependencies(t *testing.T) {
	f := newFixture(t)
	lock := `{"manifest": {"vars": {"A": "of $B", "B": "b", "C": "\\\"quoted\\\" $(echo run)"}}}`
	if err := os.WriteFile(filepath.Join(f.dir, "environment/manifest.lock"), []byte(lock), 0o644); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, _ := f.run(t)
	for _, line := range []string{"A=of b", "B=b", `C="quoted" run`} {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("%s is missing: %q %q", line, stdout, stderr)
		}
	}
}

func TestModesDifferInWhatTheyAdd(t *testing.T) {
	f := newFixture(t)
	environment := filepath.Join(f.dir, "environment")
	for mode, wanted := range map[string]bool{"run": false, "dev": true} {
		f.context["mode"] = mode
		stdout, _, _ := f.run(t)
		if strings.Contains(stdout, "CPATH="+environment+"/include\n") != wanted ||
			!strings.Contains(stdout, "MANPATH="+environment+"/share/man:\n") ||
			!strings.Contains(stdout, "_flox_activate_tracer=true\n") {
			t.Errorf("%s: %q", mode, stdout)
		}
	}
}

func TestTheStateIsItsUsersAlone(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	for name, mode := range map[string]os.FileMode{
		"state": 0o700 | os.ModeDir, "state/state.json": 0o600, "state/state.lock": 0o644,
	} {
		if info, err := os.Stat(filepath.Join(f.dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}
