// Command flox-activations is a double of the program of that name in a built Flox environment, for tests that run real
// containers without Flox. It is as strict as the real one: what that refuses, this refuses.
//
// Called as `activate` (through a symlink) it is a double of the environment's activation script instead.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"
)

func main() {
	// The real one has no handlers, and the first process of a PID namespace gets only signals that it handles. This one's
	// language handles them all, so it takes and forgets them; what it starts and what it becomes has the defaults.
	if os.Getpid() == 1 {
		signal.Notify(make(chan os.Signal, 1))
	}
	err := run(filepath.Base(os.Args[0]), os.Args[1:])
	fmt.Fprintln(os.Stderr, err) // run returns only when nothing was started
	if errors.Is(err, errPanic) {
		os.Exit(101)
	}
	os.Exit(1)
}

var errPanic = errors.New("thread 'main' panicked: environment variable is not valid unicode")

func run(program string, args []string) error {
	switch {
	case program == "activate":
		return runScript(args)
	case len(args) == 2 && args[0] == "dump-env":
		return dumpEnv(args[1])
	case len(args) >= 1 && args[0] == "activate":
		return runActivate(args[1:])
	}
	return errors.New("usage: flox-activations activate --activate-data FILE")
}

func runActivate(args []string) error {
	if len(args) < 2 || args[0] != "--activate-data" {
		return errors.New("error: the following required arguments were not provided: --activate-data <ACTIVATE_DATA>")
	}
	context, err := readContext(args[1])
	if err != nil {
		return fmt.Errorf("✘ ERROR: %w", err)
	}
	if context.RemoveAfterReading {
		if err := os.Remove(args[1]); err != nil {
			return fmt.Errorf("✘ ERROR: %w", err)
		}
	}
	env, err := inherited()
	if err != nil {
		return err
	}
	if level := env.get("RUST_LOG"); strings.Contains(level, "debug") || strings.Contains(level, "trace") {
		fmt.Fprintln(os.Stderr, "DEBUG flox_activations::start: starting activation")
	}
	attach := context.AttachCtx
	activation := activation{
		env: attach.Env, cache: attach.EnvCache, storePath: context.FloxActivateStorePath, shell: context.Shell.Bash,
		mode: context.Mode, cuda: attach.FloxEnvCudaDetection, attach: &attach, interpreter: attach.InterpreterPath,
	}
	started, err := withState(context, env, activation.start)
	if err != nil {
		return err
	}
	return become(context.InvocationType.ExecCommand, started)
}

// runScript is `<env>/activate --env ENV --mode MODE [--skip-hook-on-activate] -- argv...`: no state, no description.
func runScript(args []string) error {
	env, mode, hook := "", "dev", true
	for len(args) > 0 && args[0] != "--" {
		switch {
		case args[0] == "--env" && len(args) > 1:
			env, args = args[1], args[1:]
		case args[0] == "--mode" && len(args) > 1:
			mode, args = args[1], args[1:]
		case args[0] == "--env-project" && len(args) > 1:
			args = args[1:]
		case args[0] == "--skip-hook-on-activate":
			hook = false
		default:
			return fmt.Errorf("Error: unknown option %s", args[0])
		}
		args = args[1:]
	}
	if env == "" || len(args) < 2 {
		return errors.New("usage: activate --env ENV [--mode MODE] -- COMMAND ...")
	}
	if mode != "run" && mode != "dev" {
		return fmt.Errorf("Error: invalid mode %q", mode)
	}
	variables, err := inherited()
	if err != nil {
		return err
	}
	activation := activation{
		env: env, cache: variables.get("FLOX_ENV_CACHE"), storePath: env,
		shell: filepath.Join(env, "bin/sh"), skipHook: !hook, mode: mode,
	}
	started, err := activation.start(variables)
	if err != nil {
		return err
	}
	return become(args[1:], started)
}

// inherited is the environment that the program was started with, where it is fit for an activation.
func inherited() (environment, error) {
	for _, entry := range os.Environ() {
		if !utf8.ValidString(entry) {
			return nil, errPanic
		}
	}
	env := environment(os.Environ())
	if env.get("_FLOX_PROMPT_HOOK_VERSION") != "" {
		return nil, errors.New("✘ ERROR: the prompt hook of another version of Flox is active")
	}
	return env, nil
}

// become replaces this process with the command, found on the activated PATH.
func become(argv []string, env environment) error {
	if len(argv) == 0 {
		return errors.New("✘ ERROR: empty exec command provided")
	}
	missing := fmt.Errorf("✘ ERROR: %s: command not found", argv[0])
	folders := []string{""}
	if !strings.Contains(argv[0], "/") {
		folders = filepath.SplitList(env.get("PATH"))
	}
	for _, folder := range folders {
		err := syscall.Exec(filepath.Join(folder, argv[0]), argv, env)
		switch {
		case errors.Is(err, syscall.EACCES):
			missing = errors.New("✘ ERROR: Permission denied (os error 13)")
		case !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR):
			return fmt.Errorf("✘ ERROR: %w", err)
		}
	}
	return missing
}
