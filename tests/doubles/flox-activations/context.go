package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// activateContext is the file that --activate-data names. Pointers are fields that must be there.
type activateContext struct {
	FloxActivateStorePath string
	ActivationStateDir    string
	Mode                  string
	Shell                 struct{ Bash string }
	InvocationType        invocationType
	RemoveAfterReading    bool
	AttachCtx             attachContext
}

type attachContext struct {
	Env                    string
	EnvCache               string
	EnvDescription         string
	FloxActiveEnvironments string
	PromptColor1           string
	PromptColor2           string
	FloxPromptEnvironments string
	SetPrompt              bool
	FloxEnvCudaDetection   string
	InterpreterPath        string
}

type invocationType struct{ ExecCommand []string }

type fields map[string]json.RawMessage

func readContext(path string) (activateContext, error) {
	var context activateContext
	data, err := os.ReadFile(path)
	if err != nil {
		return context, err
	}
	var top, attach, shell fields
	if err := json.Unmarshal(data, &top); err != nil {
		return context, err
	}
	err = errors.Join(
		top.required("flox_activate_store_path", &context.FloxActivateStorePath),
		top.required("activation_state_dir", &context.ActivationStateDir),
		top.required("mode", &context.Mode),
		top.required("remove_after_reading", &context.RemoveAfterReading),
		top.required("shell", &shell),
		shell.required("bash", &context.Shell.Bash),
		top.required("attach_ctx", &attach),
		attach.required("env", &context.AttachCtx.Env),
		attach.required("env_cache", &context.AttachCtx.EnvCache),
		attach.required("env_description", &context.AttachCtx.EnvDescription),
		attach.required("flox_active_environments", &context.AttachCtx.FloxActiveEnvironments),
		attach.required("prompt_color_1", &context.AttachCtx.PromptColor1),
		attach.required("prompt_color_2", &context.AttachCtx.PromptColor2),
		attach.required("flox_prompt_environments", &context.AttachCtx.FloxPromptEnvironments),
		attach.required("set_prompt", &context.AttachCtx.SetPrompt),
		attach.required("flox_env_cuda_detection", &context.AttachCtx.FloxEnvCudaDetection),
		attach.required("interpreter_path", &context.AttachCtx.InterpreterPath),
		context.InvocationType.read(top["invocation_type"]),
	)
	if err != nil {
		return context, err
	}
	if context.Mode != "run" && context.Mode != "dev" {
		return context, fmt.Errorf("unknown variant `%s`, expected `dev` or `run`", context.Mode)
	}
	if project := top["project_ctx"]; project != nil && string(project) != "null" {
		return context, errors.New("this double has no projects: project_ctx must be null")
	}
	return context, nil
}

// required decodes a field as serde does without a default: absent and null are errors, and so is another type.
func (f fields) required(name string, into any) error {
	raw, found := f[name]
	if !found || string(raw) == "null" {
		return fmt.Errorf("missing field `%s`", name)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("invalid type in field `%s`: %w", name, err)
	}
	return nil
}

// read knows the one form that a container uses; the others would leave a shell between containerd and the command.
func (i *invocationType) read(raw json.RawMessage) error {
	var variant map[string][]string
	if err := json.Unmarshal(raw, &variant); err != nil || len(variant) != 1 || variant["execcommand"] == nil {
		return errors.New("this double knows only invocation_type {\"execcommand\": [...]}")
	}
	i.ExecCommand = variant["execcommand"]
	return nil
}
