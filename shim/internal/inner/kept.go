package inner

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
)

const (
	keptFile = "flox-inner-runtime" // in the bundle, which ends with the container: one absolute path
	maxPath  = 4096
	maxState = 16 << 20
)

// Keep remembers which runtime creates the container of a bundle.
func Keep(bundle, runtime string) error {
	return node.WriteFile(filepath.Join(bundle, keptFile), []byte(runtime+"\n"), 0o600)
}

// Of gives the runtime that created the container of a call, and false where there is none that knows it.
//
// containerd's log of a container lies in its bundle. For a call by hand the runtimes' own state says where the bundle
// is. A container that an older version of the shim created has nothing kept, and a kept runtime may have been removed
// from the node: then the one of this node's runtimes that knows the container is its, and that is kept.
func Of(call cmdline.Call, policy func() node.Policy) (string, bool) {
	var bundle string
	if call.Log != "" {
		bundle = call.Bundle()
		if runtime, found := kept(bundle); found {
			return runtime, true
		}
	}
	id := call.ID()
	if !pod.ValidID(id) {
		return "", false
	}
	for _, root := range roots(call.Root) {
		stated, known := stateOf(root, id)
		if !known {
			continue
		}
		if stated != "" {
			bundle = stated
		}
		if runtime, found := kept(bundle); found {
			return runtime, true
		}
		for _, candidate := range candidates(policy().InnerRuntime) {
			if usable(candidate) == nil && knows(candidate, root, id) {
				_ = Keep(bundle, candidate)
				return candidate, true
			}
		}
	}
	return "", false
}

// HasState says that a runtime still knows the container of a call.
func HasState(call cmdline.Call) bool {
	for _, root := range roots(call.Root) {
		if _, known := stateOf(root, call.ID()); known {
			return true
		}
	}
	return false
}

func kept(bundle string) (string, bool) {
	if !filepath.IsAbs(bundle) {
		return "", false
	}
	data, err := node.Read(filepath.Join(bundle, keptFile), maxPath)
	runtime, whole := strings.CutSuffix(string(data), "\n")
	return runtime, err == nil && whole && usable(runtime) == nil
}

// roots are the folders in which runtimes keep their containers' state: the one of the call, else the usual ones.
func roots(named string) []string {
	if named != "" {
		return []string{named}
	}
	return []string{"/run/runc", "/run/crun"}
}

// stateOf reads the bundle from what runc and its relatives (state.json) or crun (status) keep of a container.
func stateOf(root, id string) (bundle string, known bool) {
	folder := filepath.Join(root, id)
	var runc struct {
		Config struct {
			Labels []string `json:"labels"`
		} `json:"config"`
	}
	if err := readState(filepath.Join(folder, "state.json"), &runc); !errors.Is(err, os.ErrNotExist) {
		for _, label := range runc.Config.Labels {
			if value, found := strings.CutPrefix(label, "bundle="); found {
				bundle = value
			}
		}
		return bundle, true
	}
	var crun struct {
		Bundle string `json:"bundle"`
	}
	err := readState(filepath.Join(folder, "status"), &crun)
	return crun.Bundle, !errors.Is(err, os.ErrNotExist)
}

func readState(path string, into any) error {
	data, err := node.Read(path, maxState)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func candidates(named string) []string {
	var all []string
	if named != "" {
		all = append(all, named)
	}
	if former, err := os.ReadFile(node.FormerRuntimes()); err == nil {
		all = append(all, strings.Fields(string(former))...)
	}
	for _, name := range []string{"runc", "crun"} {
		for _, folder := range usualFolders {
			all = append(all, node.Path(filepath.Join(folder, name)))
		}
	}
	return all
}

// knows asks a runtime for the container's state.
func knows(runtime, root, id string) bool {
	return exec.Command(runtime, "--root", root, "state", id).Run() == nil
}
