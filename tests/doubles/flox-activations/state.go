package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const stateVersion = 3

// state is what one start leaves for later processes of the same container.
type state struct {
	Version             int    `json:"version"`
	Info                any    `json:"info"`
	Mode                string `json:"mode"`
	ExecutivePid        int    `json:"executive_pid"`
	AttachedPids        []int  `json:"attached_pids"`
	ProcessComposeStore any    `json:"current_process_compose_store_path"`
	Ready               string `json:"ready"` // the folder that holds end.env.json
}

// withState gives the environment of a start: a recorded one when its process still lives, else a new one.
func withState(
	context activateContext, env environment, start func(environment) (environment, error),
) (environment, error) {
	if env.get("HOME") == "" {
		return nil, errors.New("✘ ERROR: failed to get home directory")
	}
	dir := context.ActivationStateDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("✘ ERROR: failed to create the activation state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "state.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("✘ ERROR: failed to acquire lockfile: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "state.json")
	recorded, err := readState(file)
	if err != nil {
		return nil, err
	}
	if recorded != nil && syscall.Kill(recorded.ExecutivePid, 0) == nil {
		if recorded.Mode != context.Mode {
			return nil, fmt.Errorf("✘ ERROR: ModeMismatch: the environment is active in mode %s", recorded.Mode)
		}
		var attached environment
		recorded.AttachedPids = append(recorded.AttachedPids, os.Getpid())
		return attached, errors.Join(
			readJSON(filepath.Join(recorded.Ready, "end.env.json"), &attached), writeJSON(file, recorded),
		)
	}
	if info, err := os.Stat(context.AttachCtx.EnvCache); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("✘ ERROR: the cache %s of the environment is no folder", context.AttachCtx.EnvCache)
	}
	folder := filepath.Join(dir, filepath.Base(context.FloxActivateStorePath)+"."+
		strconv.FormatInt(time.Now().UnixMilli(), 10))
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(folder, "start.env.json"), env); err != nil {
		return nil, err
	}
	started, err := start(env)
	if err != nil {
		return nil, err
	}
	return started, errors.Join(
		writeJSON(filepath.Join(folder, "end.env.json"), started),
		os.WriteFile(filepath.Join(folder, "complete"), nil, 0o600),
		writeJSON(file, newState(context.Mode, os.Getpid(), folder)),
	)
}

func newState(mode string, pid int, folder string) state {
	return state{Version: stateVersion, Mode: mode, ExecutivePid: pid, AttachedPids: []int{pid}, Ready: folder}
}

func readState(file string) (*state, error) {
	var recorded state
	err := readJSON(file, &recorded)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case recorded.Version != stateVersion:
		return nil, fmt.Errorf("state.json has version %d, and this is version %d", recorded.Version, stateVersion)
	}
	return &recorded, nil
}

func readJSON(file string, into any) error {
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	return err
}

func writeJSON(file string, value any) error {
	data, err := json.Marshal(value)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	return err
}
