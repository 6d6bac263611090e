package activation

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/node"
)

const environment = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-environment-hello-run"

// tree makes a view of files: a content that begins with "->" is a symlink.
func tree(t *testing.T, files map[string]string) View {
	t.Helper()
	node.SetPrefix(t.TempDir())
	t.Cleanup(func() { node.SetPrefix("") })
	var closure []string
	for name, content := range files {
		closure = append(closure, strings.Split(name, "/")[3])
		file := node.Path(name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, isLink := strings.CutPrefix(content, "->"); isLink {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return NewView(closure)
}

func built(extra map[string]string) map[string]string {
	files := map[string]string{
		"/nix/store/i-interpreter/activate":        "#! /nix/store/b-bash/bin/bash -e\n",
		"/nix/store/b-bash/bin/bash":               "\x7fELF",
		"/nix/store/c-act/bin/flox-activations":    "\x7fELF",
		environment + "/activate":                  "->/nix/store/i-interpreter/activate",
		environment + "/libexec/flox-activations":  "->../../c-act/bin/flox-activations",
		environment + "/manifest.lock":             "{}",
		"/nix/store/s-scripts/activate-is-program": "\x7fELF",
	}
	for name, content := range extra {
		if content == "" {
			delete(files, name)
		} else {
			files[name] = content
		}
	}
	return files
}

func plan(t *testing.T, extra map[string]string, argv ...string) (Start, error) {
	t.Helper()
	return Environment{tree(t, built(extra)), environment, "demo/hello", "dev", "", "/.flox/cache"}.Plan(argv)
}

func TestACommandIsPassedUntouchedInTheContext(t *testing.T) {
	argv := []string{"sh", "-c", "echo \"$HOME\" <&> \u2028", "", "--"}
	start, err := plan(t, nil, argv...)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(start.Args, []string{
		environment + "/libexec/flox-activations", "activate", "--activate-data", "/.flox-node/ctx.json",
	}) {
		t.Errorf("%q", start.Args)
	}
	var context map[string]any
	if err := json.Unmarshal(start.Context, &context); err != nil {
		t.Fatal(err)
	}
	attach := context["attach_ctx"].(map[string]any)
	for name, wanted := range map[string]any{
		"flox_activate_store_path": environment, "mode": "dev", "project_ctx": nil, "remove_after_reading": false,
		"activation_state_dir": "/.flox-node/activation", "shell": map[string]any{"bash": "/nix/store/b-bash/bin/bash"},
	} {
		if !reflect.DeepEqual(context[name], wanted) {
			t.Errorf("%s: %v", name, context[name])
		}
	}
	if attach["interpreter_path"] != "/nix/store/i-interpreter" || attach["env_description"] != "demo/hello" {
		t.Errorf("%v", attach)
	}
	var got []string
	for _, word := range context["invocation_type"].(map[string]any)["execcommand"].([]any) {
		got = append(got, word.(string))
	}
	if !reflect.DeepEqual(got, argv) {
		t.Errorf("%q", got)
	}
}

func TestTheScriptIsUsedWhereFloxActivationsIsMissingOrNoBashIsNamed(t *testing.T) {
	for name, extra := range map[string]map[string]string{
		"missing":    {environment + "/libexec/flox-activations": ""},
		"dangling":   {"/nix/store/c-act/bin/flox-activations": ""},
		"leads away": {environment + "/libexec/flox-activations": "->/bin/sh"},
		"no script":  {environment + "/activate": "->/nix/store/s-scripts/activate-is-program"},
	} {
		start, err := plan(t, extra, "hello", "x")
		wanted := []string{environment + "/activate", "--env", environment, "--mode", "dev", "--", "hello", "x"}
		if err != nil || !reflect.DeepEqual(start.Args, wanted) || start.Context != nil || !Has(start.Env, "_FLOX_ENV_CACHE") ||
			!strings.Contains(start.Warning, "no usable libexec/flox-activations") {
			t.Errorf("%s: %+v, %v", name, start, err)
		}
	}
}

func TestCudaIsLookedForInDevModeUnlessTheManifestDoesNotWantIt(t *testing.T) {
	for _, test := range []struct{ mode, lock, wanted string }{
		{"dev", `{"manifest":{}}`, "1"},
		{"dev", `{"manifest":{"options":{"cuda-detection":true}}}`, "1"},
		{"dev", `{"manifest":{"options":{"cuda-detection":false}}}`, "0"},
		{"dev", `{`, "1"},
		{"run", `{"manifest":{"options":{"cuda-detection":true}}}`, "0"},
	} {
		view := tree(t, built(map[string]string{environment + "/manifest.lock": test.lock}))
		start, err := Environment{view, environment, "demo/hello", test.mode, "", "/.flox/cache"}.Plan([]string{"x"})
		if err != nil || start.Warning != "" {
			t.Fatal(start.Warning, err)
		}
		if !strings.Contains(string(start.Context), `"flox_env_cuda_detection":"`+test.wanted+`"`) {
			t.Errorf("%+v: %s", test, start.Context)
		}
	}
}

func TestAnEnvironmentThatCannotBeActivatedIsAnError(t *testing.T) {
	for name, extra := range map[string]map[string]string{
		"no script":         {environment + "/activate": ""},
		"script leads away": {environment + "/activate": "->/../../../../bin/sh"},
		"loop":              {environment + "/activate": "->activate"},
		"bash is missing":   {"/nix/store/b-bash/bin/bash": ""},
		"bash of the host":  {"/nix/store/i-interpreter/activate": "#!/bin/sh\n"},
		"empty first line":  {"/nix/store/i-interpreter/activate": "#!\n"},
	} {
		if start, err := plan(t, extra, "hello"); err == nil {
			t.Errorf("%s: %+v", name, start)
		}
	}
}

func TestResolveNeverLeavesTheView(t *testing.T) {
	view := tree(t, map[string]string{
		"/nix/store/x/up":    "->../../../../../../etc/passwd",
		"/nix/store/x/root":  "->/etc/passwd",
		"/nix/store/x/trick": "->/nix/../etc/passwd",
		"/nix/store/x/self":  "->/nix/store/x/file",
		"/nix/store/x/dir":   "->/nix/store/",
		"/nix/store/x/file":  "content",
	})
	for name, wanted := range map[string]string{
		"up": "", "root": "", "trick": "", "missing": "", "file/below": "", "self": "/nix/store/x/file", "dir/x/file": "/nix/store/x/file",
		"../x/./file": "/nix/store/x/file", "../../../etc": "",
	} {
		got, _, err := view.Resolve("/nix/store/x/" + name)
		if got != wanted || (err == nil) != (wanted != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestAnExecGetsTheFirstProcessEnvironmentAndItsOwnOnTop(t *testing.T) {
	configured := []string{"PATH=/bin", "A=1", "UNSET=1", "FLOX_ENV_CACHE=/stale", "ENV=prod"}
	first := []string{"PATH=/env/bin:/bin", "A=2", "HOOK=1", "FLOX_ENV=/env", "FLOX_ENV_CACHE=/cache", "ENV=hook"}
	cleaned, _ := Clean(configured)
	got := Merge(first, Defer(cleaned), append(append([]string{}, configured...), "TERM=xterm", "HOOK=explicit", "PATH=/other"))
	wanted := []string{
		"PATH=/env/bin:/bin", "A=2", "HOOK=explicit", "FLOX_ENV=/env", "FLOX_ENV_CACHE=/cache", "ENV=hook", "TERM=xterm",
	}
	if !reflect.DeepEqual(got, wanted) {
		t.Fatalf("%q", got)
	}
}

func TestABareExecStillFindsTheEnvironmentsPrograms(t *testing.T) {
	got := Bare([]string{"A=1", "FLOX_ENV_DIRS=1", "PATH=/bin"}, "/env")
	if !reflect.DeepEqual(got, []string{"A=1", "PATH=/env/bin:/bin", "FLOX_ENV=/env"}) {
		t.Fatalf("%q", got)
	}
	if got := Bare(nil, "/env"); !strings.HasPrefix(got[1], "PATH=/env/bin:/") {
		t.Fatalf("%q", got)
	}
}

func TestOnlyTheNamesThatFloxSetsAreDropped(t *testing.T) {
	env := []string{
		"FLOX_ENVIRONMENT=prod", "FLOX_ENV_STAGE=x", "_FLOX_APP=y", "FLOX_ENV=/x", "_FLOX_HOOK_DIFF=", "FLOX_ENV_CACHE=/c",
		"FLOX_DISABLE_METRICS=true", "A=1",
	}
	kept, dropped := Clean(env)
	if strings.Join(kept, " ") != "FLOX_ENVIRONMENT=prod FLOX_ENV_STAGE=x _FLOX_APP=y FLOX_DISABLE_METRICS=true A=1" ||
		strings.Join(dropped, " ") != "FLOX_ENV _FLOX_HOOK_DIFF FLOX_ENV_CACHE" {
		t.Fatalf("%q, %q", kept, dropped)
	}
}

func TestWhatChangesAnActivationPassesItUnderAnotherName(t *testing.T) {
	env := []string{
		"RUST_LOG=debug", "GETOPT_COMPATIBLE=", "SHELLOPTS=xtrace", "BASH_ENV=/x", "ENV=prod", "FLOX_ACTIVATE_TRACE=1",
		"LD_PRELOAD=/x.so", "LD_LIBRARY_PATH=/lib", "BASH_FUNC_cd%%=() { exit 1; }", "POSIXLY_CORRECT=1",
		"ENVOY=1", "RUST_LOGGER=1", "A.B=1",
	}
	deferred := Defer(env)
	for _, entry := range deferred {
		if commands[name(entry)] || strings.HasPrefix(entry, function) {
			t.Errorf("%s reaches the activation", entry)
		}
	}
	if got := Restore(deferred); !reflect.DeepEqual(got, env) {
		t.Errorf("%q", got)
	}
	if got := Restore([]string{"FLOX_NODE_LATER_ENV=pod", "A=1", "ENV=hook"}); strings.Join(got, " ") != "A=1 ENV=hook" {
		t.Errorf("the environment's own value counts: %q", got)
	}
}
