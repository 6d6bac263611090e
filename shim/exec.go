package main

import (
	"errors"
	"os"
	"time"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/initenv"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/report"
	"flox.dev/flox-node/shim/internal/spec"
)

// A command that is executed while the environment's hook still runs waits this long for it: less than the shortest
// timeout of a probe (1 s), so that the probe gets its answer.
const patience = 700 * time.Millisecond

// enter gives a command that is executed in one of our containers the environment of the container's first process:
// containerd builds it from the configuration that it knows, not from the one that create rewrote. Whatever goes
// wrong is logged, and the command runs with what it has.
func enter(call cmdline.Call) {
	id := call.ID()
	processFile, found := call.Option("process", "p")
	if !found || !pod.ValidID(id) {
		return
	}
	container, err := records.Read[records.Container](node.ContainerRecord(id))
	if os.IsNotExist(err) {
		return
	}
	if err == nil && *container.EnvironmentInExec {
		err = rewriteProcess(processFile, container)
	}
	if err != nil {
		report.Log(report.Event{
			Level: "warning", Event: "exec", Container: id, Sandbox: container.SandboxID, Namespace: container.Namespace,
			Pod: container.Pod, Message: err.Error(),
		})
	}
}

func rewriteProcess(processFile string, container records.Container) error {
	first, problem := initenv.Read(container.Bundle, patience)
	var configured []string
	if problem == nil {
		configured, problem = spec.ConfiguredEnv(container.Bundle)
	}
	err := spec.RewriteProcess(processFile, func(process *spec.Process) {
		if problem == nil {
			process.Env = activation.Merge(first, configured, process.Env)
		} else {
			process.Env = activation.Bare(process.Env, container.StorePath)
		}
	})
	return errors.Join(err, problem)
}
