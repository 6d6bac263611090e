package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// environment is a list of NAME=value.
type environment []string

func (e environment) get(name string) string {
	for _, entry := range e {
		if value, found := strings.CutPrefix(entry, name+"="); found {
			return value
		}
	}
	return ""
}

func (e environment) with(name, value string) environment {
	result := make(environment, 0, len(e)+1)
	for _, entry := range e {
		if !strings.HasPrefix(entry, name+"=") {
			result = append(result, entry)
		}
	}
	return append(result, name+"="+value)
}

type activation struct {
	env, cache, description, active, storePath, shell string
	skipHook                                          bool
}

// start gives the environment after paths, [vars] and the hook.
func (a activation) start(env environment) (environment, error) {
	env = env.with("FLOX_ENV", a.env).
		with("FLOX_ENV_CACHE", a.cache).
		with("FLOX_ENV_DIRS", a.env).
		with("FLOX_ACTIVATE_START_SERVICES", "false").
		with("PATH", strings.Trim(filepath.Join(a.env, "bin")+":"+env.get("PATH"), ":"))
	if a.description != "" {
		env = env.with("FLOX_ENV_DESCRIPTION", a.description).with("_FLOX_ACTIVE_ENVIRONMENTS", a.active)
	}
	variables, err := manifestVars(filepath.Join(a.storePath, "manifest.lock"))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(variables))
	for name := range variables {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		env = env.with(name, variables[name])
	}
	return a.runHook(env)
}

// manifestVars reads the [vars] section of the manifest that the environment was built from.
func manifestVars(lock string) (map[string]string, error) {
	data, err := os.ReadFile(lock)
	if err != nil {
		return nil, err
	}
	var parsed struct {
		Manifest struct {
			Vars map[string]string `json:"vars"`
		} `json:"manifest"`
	}
	if err := json.Unmarshal(data, &parsed); err != nil {
		return nil, fmt.Errorf("%s: %w", lock, err)
	}
	return parsed.Manifest.Vars, nil
}

// runHook sources the hook with the environment's shell; what it prints goes to stderr, what it exports counts.
func (a activation) runHook(env environment) (environment, error) {
	hook := filepath.Join(a.storePath, "activate.d/hook-on-activate")
	if _, err := os.Stat(hook); a.skipHook || err != nil {
		return env, nil
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	// The shell ends by becoming this program, which writes the environment that it was given: a hook that exits or
	// execs never gets there.
	script := `. "$1" 1>&2 && exec "$2" dump-env /proc/self/fd/3`
	command := exec.Command(a.shell, "-c", script, "hook", hook, "/proc/self/exe")
	if self, err := os.Executable(); err == nil {
		command.Args[len(command.Args)-1] = self
	}
	command.Env, command.Stderr, command.ExtraFiles = env, os.Stderr, []*os.File{writer}
	if err := command.Start(); err != nil {
		_ = writer.Close()
		return nil, fmt.Errorf("failed to run the activation script: %w", err)
	}
	_ = writer.Close()
	var dumped environment
	decodeErr := json.NewDecoder(reader).Decode(&dumped)
	if err := command.Wait(); err != nil || decodeErr != nil {
		return nil, errors.New("failed to run the activation script: the hook did not complete")
	}
	return dumped, nil
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
