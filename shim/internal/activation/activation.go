package activation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"flox.dev/flox-node/shim/internal/node"
)

// MaxLock is how large the manifest.lock of an environment may be.
const MaxLock = 16 << 20

// Where the container finds what we mount into it.
const (
	// RuntimeDir is a tmpfs of the container's own. Its activation state must be as young as the container: a record
	// that outlived a restart would make the new process attach to a start that never happened. It lies in the root of
	// the tree, because pods mount volumes at /run and /var/run, and images have symlinks there.
	RuntimeDir  = "/.flox-node"
	ContextFile = RuntimeDir + "/ctx.json"
	// Launcher is this program, which becomes the command once the environment is activated; see package launch.
	Launcher = RuntimeDir + "/launch"
	// KeptEnvironment is the file in RuntimeDir that the launcher leaves: NAME=value, separated by zero bytes.
	KeptEnvironment = "environ"
	stateDir        = RuntimeDir + "/activation"
)

// Start is how to start a command in an environment.
type Start struct {
	Args    []string
	Env     []string // NAME=value, to be added
	Context []byte   // the content of ContextFile; nil when none is needed
	Warning string   // what the node's administrator should know
}

// Environment is a built environment in a view.
type Environment struct {
	View      View
	StorePath string
	Name      string // owner/name
	Mode      string // run or dev
	Link      string // where a mutable container sees the environment; empty: at StorePath
	Cache     string // the container's $FLOX_ENV_CACHE: hooks expect it to exist and to be writable for every user
}

// Plan chooses the way to start argv. The environment's own flox-activations is told everything in a file and then
// becomes the command, which so is the container's first process and owns its standard streams. Where the environment
// has none, its activation script does the same without a record of the start.
func (e Environment) Plan(argv []string) (Start, error) {
	script := path.Join(e.StorePath, "activate")
	interpreter, bash, err := e.interpreter(script)
	if err != nil {
		return Start{}, fmt.Errorf("environment %s cannot be activated (%w): it was built by a Flox older than 1.9, or "+
			"its closure is not complete", e.Name, err)
	}
	activations := path.Join(e.StorePath, "libexec/flox-activations")
	if _, err := e.View.executable(activations); err == nil && bash != "" {
		return e.byActivations(activations, interpreter, bash, argv)
	}
	return Start{
		Args: append([]string{script, "--env", e.StorePath, "--mode", e.Mode, "--"}, argv...),
		// Versions of the script differ in which of the two they read; the other one is harmless.
		Env: []string{"FLOX_ENV_CACHE=" + e.Cache, "_FLOX_ENV_CACHE=" + e.Cache},
		// Every Flox from 1.9 on builds it into an environment.
		Warning: "the environment " + e.Name + " has no usable libexec/flox-activations, so it is activated by its script " +
			"alone: what the node holds of it may be damaged",
	}, nil
}

// interpreter finds the package of the activation scripts and the bash that they are written for; the bash is empty
// when the script is none but a program.
func (e Environment) interpreter(script string) (folder, bash string, err error) {
	resolved, err := e.View.executable(script)
	if err != nil {
		return "", "", err
	}
	if bash, err = e.View.shebang(resolved); err == nil && bash != "" {
		_, err = e.View.executable(bash)
	}
	return path.Dir(resolved), bash, err
}

// Bash gives the environment's own bash: the one on its PATH, else that of its activation scripts; empty when neither
// is one.
func (e Environment) Bash() string {
	own := path.Join(e.StorePath, "bin/bash")
	if _, err := e.View.executable(own); err == nil {
		return own
	}
	_, bash, err := e.interpreter(path.Join(e.StorePath, "activate"))
	if err != nil || path.Base(bash) != "bash" {
		return ""
	}
	return bash
}

// attachContext and activateContext are the superset of what flox-activations 1.9 to 1.15 reads.
type attachContext struct {
	Env                    string `json:"env"`
	EnvCache               string `json:"env_cache"`
	EnvDescription         string `json:"env_description"`
	FloxActiveEnvironments string `json:"flox_active_environments"`
	PromptColor1           string `json:"prompt_color_1"`
	PromptColor2           string `json:"prompt_color_2"`
	FloxPromptEnvironments string `json:"flox_prompt_environments"`
	SetPrompt              bool   `json:"set_prompt"`
	FloxEnvCudaDetection   string `json:"flox_env_cuda_detection"`
	InterpreterPath        string `json:"interpreter_path"`
	FloxRuntimeDir         string `json:"flox_runtime_dir"` // required by 1.9.0 and 1.9.1 only
}

type activateContext struct {
	FloxActivateStorePath string              `json:"flox_activate_store_path"`
	AttachCtx             attachContext       `json:"attach_ctx"`
	ProjectCtx            *struct{}           `json:"project_ctx"` // null: no services, no process beside the command
	ActivationStateDir    string              `json:"activation_state_dir"`
	Mode                  string              `json:"mode"`
	Shell                 map[string]string   `json:"shell"`
	InvocationType        map[string][]string `json:"invocation_type"`
	RemoveAfterReading    bool                `json:"remove_after_reading"`
	MetricsUUID           *string             `json:"metrics_uuid"`
	DisableHook           bool                `json:"disable_hook"` // the prompt's hook, not the environment's
}

// cudaDetection says whether the activation looks for the node's CUDA libraries: in dev mode, unless the manifest does
// not want it. A run mode has no script that would.
func (e Environment) cudaDetection() string {
	if e.Mode != "dev" {
		return "0"
	}
	var lock struct {
		Manifest struct {
			Options struct {
				CudaDetection *bool `json:"cuda-detection"`
			} `json:"options"`
		} `json:"manifest"`
	}
	resolved, _, err := e.View.Resolve(path.Join(e.StorePath, "manifest.lock"))
	if err == nil {
		var data []byte
		if data, err = node.Read(e.View.Host(resolved), MaxLock); err == nil {
			err = json.Unmarshal(data, &lock)
		}
	}
	if wanted := lock.Manifest.Options.CudaDetection; err == nil && wanted != nil && !*wanted {
		return "0"
	}
	return "1"
}

func (e Environment) byActivations(activations, interpreter, bash string, argv []string) (Start, error) {
	_, name, _ := strings.Cut(e.Name, "/")
	context := activateContext{
		FloxActivateStorePath: e.StorePath,
		AttachCtx: attachContext{
			Env: e.StorePath, EnvCache: e.Cache, EnvDescription: e.Name, FloxActiveEnvironments: "[]",
			PromptColor1: "99", PromptColor2: "141", FloxPromptEnvironments: name, SetPrompt: true,
			FloxEnvCudaDetection: e.cudaDetection(), InterpreterPath: interpreter, FloxRuntimeDir: RuntimeDir,
		},
		ActivationStateDir: stateDir,
		Mode:               e.Mode,
		Shell:              map[string]string{"bash": bash},
		InvocationType:     map[string][]string{"execcommand": argv},
		DisableHook:        true,
	}
	if e.Link != "" {
		active, err := json.Marshal([]any{map[string]any{
			"environment": map[string]any{
				"type": "dot-flox", "path": "/.flox", "pointer": map[string]any{"name": name, "version": 1},
			},
			"mode": e.Mode,
		}})
		if err != nil {
			return Start{}, err
		}
		context.AttachCtx.Env, context.AttachCtx.FloxActiveEnvironments = e.Link, string(active)
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(context); err != nil {
		return Start{}, err
	}
	return Start{
		Args:    []string{activations, "activate", "--activate-data", ContextFile},
		Context: buffer.Bytes(),
	}, nil
}
