package main

import (
	"os"

	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/initenv"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
)

// forget removes what create wrote. containerd deletes a container after its end, or by force after a failed create;
// a plain delete of a running container is refused by the inner runtime, and then the environment must stay held.
func forget(call cmdline.Call) {
	id := call.ID()
	if !pod.ValidID(id) {
		return
	}
	if !call.Has("force", "f") && call.Log != "" && initenv.Runs(call.Bundle()) {
		return
	}
	if os.Remove(node.ContainerRecord(id)) != nil {
		forgetPod(id)
	}
}

// forgetPod drops a sandbox's record and its hold on the environment.
func forgetPod(id string) {
	_ = os.Remove(node.PodRecord(id))
	_ = os.Remove(node.PodRoot(id))
}
