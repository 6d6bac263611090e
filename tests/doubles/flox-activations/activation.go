package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// environment is a list of NAME=value.
type environment []string

func (e environment) get(name string) string {
	value, _ := e.lookup(name)
	return value
}

func (e environment) lookup(name string) (string, bool) {
	for _, entry := range e {
		if value, found := strings.CutPrefix(entry, name+"="); found {
			return value, true
		}
	}
	return "", false
}

func (e environment) with(name, value string) environment {
	return append(e.without(name), name+"="+value)
}

func (e environment) without(name string) environment {
	result := make(environment, 0, len(e)+1)
	for _, entry := range e {
		if !strings.HasPrefix(entry, name+"=") {
			result = append(result, entry)
		}
	}
	return result
}

type activation struct {
	env, cache, storePath, shell, mode, cuda string
	attach                                   *attachContext // nil: by the script alone
	interpreter                              string
	skipHook                                 bool
}

// start gives the environment after paths, [vars] and the hook: what the scripts changed, on top of what the program
// itself sets. So what a shell cannot hold (names such as A.B) survives, and what every shell sets is not there.
func (a activation) start(env environment) (environment, error) {
	outer := a.outer(env)
	before, after, err := a.runScripts(outer)
	if err != nil {
		return nil, err
	}
	for _, entry := range before {
		name, _, _ := strings.Cut(entry, "=")
		if _, kept := after.lookup(name); !kept {
			outer = outer.without(name)
		}
	}
	for _, entry := range after {
		if name, value, _ := strings.Cut(entry, "="); !slices.Contains(before, entry) {
			outer = outer.with(name, value)
		}
	}
	return outer, nil
}

func (a activation) outer(env environment) environment {
	env = env.with("FLOX_ENV", a.env).
		with("FLOX_ENV_CACHE", a.cache).
		with("FLOX_ENV_DIRS", a.env).
		with("FLOX_ACTIVATE_START_SERVICES", "false").
		with("PATH", strings.Trim(filepath.Join(a.env, "bin")+":"+env.get("PATH"), ":")).
		with("MANPATH", filepath.Join(a.env, "share/man")+":"+env.get("MANPATH"))
	if a.attach == nil {
		return env
	}
	tracer := "true"
	if _, traced := env.lookup("FLOX_ACTIVATE_TRACE"); traced {
		tracer = filepath.Join(a.interpreter, "activate.d/trace")
	}
	// There is no project, so its variable goes even if it was set.
	return env.without("FLOX_ENV_PROJECT").
		with("FLOX_ENV_DESCRIPTION", a.attach.EnvDescription).
		with("FLOX_PROMPT_COLOR_1", a.attach.PromptColor1).
		with("FLOX_PROMPT_COLOR_2", a.attach.PromptColor2).
		with("FLOX_PROMPT_ENVIRONMENTS", a.attach.FloxPromptEnvironments).
		with("_FLOX_ACTIVE_ENVIRONMENTS", a.attach.FloxActiveEnvironments).
		with("_FLOX_ENV_DIRS_ADD_SBIN", "").
		with("_FLOX_HOOK_DIFF", "").
		with("_activate_d", filepath.Join(a.interpreter, "activate.d")).
		with("_flox_activate_tracelevel", "0").
		with("_flox_activate_tracer", tracer).
		with("_flox_activations", filepath.Join(a.storePath, "libexec/flox-activations"))
}

// profile is what the interpreter's profile.d scripts do, as lines for a shell.
func (a activation) profile() string {
	lines := []string{
		`export INFOPATH="$FLOX_ENV/share/info:$INFOPATH"`,
		`export XDG_DATA_DIRS="$FLOX_ENV/share:${XDG_DATA_DIRS:-/usr/local/share:/usr/share}"`,
		`if [ -e "$FLOX_ENV/etc/ssl/certs/ca-bundle.crt" ]; then`,
		`export SSL_CERT_FILE="${SSL_CERT_FILE:-$FLOX_ENV/etc/ssl/certs/ca-bundle.crt}"`,
		`export NIX_SSL_CERT_FILE="${NIX_SSL_CERT_FILE:-$SSL_CERT_FILE}"; fi`,
	}
	if a.mode == "dev" {
		for name, folder := range map[string]string{
			"CPATH": "include", "LIBRARY_PATH": "lib", "PKG_CONFIG_PATH": "lib/pkgconfig", "ACLOCAL_PATH": "share/aclocal",
		} {
			lines = append(lines, fmt.Sprintf(`export %s="$FLOX_ENV/%s${%s:+:$%s}"`, name, folder, name, name))
		}
		lines = append(lines, `if [ -z "$FLOX_NOSET_LD_AUDIT" ] && [ -e "$FLOX_ENV/lib/ld-floxlib.so" ]; then`,
			`export LD_AUDIT="$FLOX_ENV/lib/ld-floxlib.so" GLIBC_TUNABLES=glibc.rtld.optional_static_tls=25000; fi`)
		if libraries := a.cudaLibraries(); libraries != "" {
			lines = append(lines, "export LD_FLOXLIB_FILES_PATH="+libraries)
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

var cudaLibrary = regexp.MustCompile(`lib(cuda|nvidia|dxcore)[^ ]*\.so[^ ]*$`)

// cudaLibraries asks the container's ldconfig for the node's libraries, where the context wants that.
func (a activation) cudaLibraries() string {
	if a.cuda != "1" {
		return ""
	}
	output, err := exec.Command("/sbin/ldconfig", "-p").Output()
	if err != nil {
		return ""
	}
	var found []string
	for _, line := range strings.Split(string(output), "\n") {
		if cudaLibrary.MatchString(line) {
			words := strings.Fields(line)
			found = append(found, words[len(words)-1])
		}
	}
	return strings.Join(found, ":")
}

// manifestVars reads the [vars] section of the manifest that the environment was built from, as lines for a shell in
// the order of their dependencies. Values are interpreted: $OTHER, backticks, \".
func manifestVars(lock string) (string, error) {
	data, err := os.ReadFile(lock)
	if err != nil {
		return "", err
	}
	var parsed struct {
		Manifest struct {
			Vars map[string]string `json:"vars"`
		} `json:"manifest"`
	}
	if err := json.Unmarshal(data, &parsed); err != nil {
		return "", fmt.Errorf("%s: %w", lock, err)
	}
	variables := parsed.Manifest.Vars
	names := make([]string, 0, len(variables))
	for name := range variables {
		names = append(names, name)
	}
	sort.Strings(names)
	var lines strings.Builder
	said := map[string]bool{}
	var say func(name string)
	say = func(name string) {
		if said[name] {
			return
		}
		said[name] = true
		for _, other := range names {
			if strings.Contains(variables[name], "$"+other) || strings.Contains(variables[name], "${"+other+"}") {
				say(other)
			}
		}
		fmt.Fprintf(&lines, "export %s=\"%s\"\n", name, variables[name])
	}
	for _, name := range names {
		say(name)
	}
	return lines.String(), nil
}

// The shell writes down its variables, does what the scripts do, and writes them down again. What the hook prints goes
// to stderr. Neither a failing last command nor `return` fails it; `exit` and `exec` never reach the end.
const scripts = `umask 077
_double_self=$1 _double_script=$2 _double_hook=$3
case $SHELLOPTS in *xtrace*) set -x ;; esac
[ -z "$BASH_ENV" ] || . "$BASH_ENV"
"$_double_self" dump-env /proc/self/fd/3
eval "$_double_script"
[ -z "$_double_hook" ] || . "$_double_hook" 1>&2
"$_double_self" dump-env /proc/self/fd/4
`

var (
	errHookFailed     = errors.New("✘ ERROR: Running hook.on-activate failed")
	errHookIncomplete = errors.New("✘ ERROR: The hook.on-activate script did not complete normally.\n\n" +
		"Hooks must not call 'exit' or 'exec'; use 'return' instead.")
)

func (a activation) runScripts(env environment) (before, after environment, err error) {
	if _, found := env.lookup("GETOPT_COMPATIBLE"); found {
		return nil, nil, errors.New("Failed to parse options.")
	}
	variables, err := manifestVars(filepath.Join(a.storePath, "manifest.lock"))
	if err != nil {
		return nil, nil, fmt.Errorf("✘ ERROR: %w", err)
	}
	hook := filepath.Join(a.storePath, "activate.d/hook-on-activate")
	if _, err := os.Stat(hook); a.skipHook || err != nil {
		hook = ""
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	command := exec.Command(a.shell, "-c", scripts, "activate", self, a.profile()+variables, hook)
	command.Env, command.Stderr = env, os.Stderr
	var readers []*os.File
	for range 2 {
		reader, writer, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		defer reader.Close()
		readers, command.ExtraFiles = append(readers, reader), append(command.ExtraFiles, writer)
	}
	if err := command.Start(); err != nil {
		return nil, nil, fmt.Errorf("✘ ERROR: %w", err)
	}
	for _, writer := range command.ExtraFiles {
		_ = writer.Close()
	}
	missing := errors.Join(json.NewDecoder(readers[0]).Decode(&before), json.NewDecoder(readers[1]).Decode(&after))
	switch ended := command.Wait(); {
	case ended != nil:
		return nil, nil, errHookFailed
	case missing != nil:
		return nil, nil, errHookIncomplete
	}
	return before, after, nil
}

func dumpEnv(file string) error {
	data, err := json.Marshal(os.Environ())
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err == nil {
		os.Exit(0)
	}
	return err
}
