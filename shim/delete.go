package main

import (
	"os"
	"path/filepath"
	"strings"

	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/inner"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
	"flox.dev/flox-node/shim/internal/records"
)

// remembers says that create wrote something about a container or sandbox.
func remembers(id string) bool {
	if !pod.ValidID(id) {
		return false
	}
	for _, path := range []string{node.ContainerRecord(id), node.PodRecord(id), node.PodRoot(id), node.Refusal(id)} {
		if _, err := os.Lstat(path); err == nil {
			return true
		}
	}
	return false
}

// remove lets the runtime delete a container, and forgets what create wrote once it is gone: the runtime refuses to
// delete one that runs, and then its environment must stay held.
func remove(call cmdline.Call, runtime string, arguments []string) (status int, err error) {
	status, err = inner.Run(runtime, arguments)
	if err != nil {
		return status, err
	}
	if status == 0 || !inner.HasState(call) {
		tellHook(call.ID())
		forget(call.ID())
	}
	return status, nil
}

func forget(id string) {
	if os.Remove(node.ContainerRecord(id)) != nil {
		forgetPod(id)
	}
}

// forgetPod drops a sandbox's record, its hold on the environment, and the records of containers that nobody deleted:
// containerd 2 does not, when their create failed.
func forgetPod(id string) {
	forgetContainers(func(container records.Container) bool { return container.SandboxID == id })
	_ = os.Remove(node.PodRecord(id))
	_ = os.Remove(node.PodRoot(id))
	_ = os.Remove(toolsRoot(id))
	_ = os.Remove(node.Refusal(id))
}

// forgetEnded drops what is left of pods and containers whose bundle is gone without a delete.
func forgetEnded() {
	forgetContainers(func(container records.Container) bool { return gone(container.Bundle) })
	forgetRefusals()
	for _, id := range recorded(node.PodRecord("x")) {
		record, err := records.Read[records.Pod](node.PodRecord(id))
		if err == nil && record.Bundle != "" && gone(record.Bundle) {
			forgetPod(id)
		}
	}
}

func forgetRefusals() {
	for _, id := range recorded(node.Refusal("x")) {
		if record, err := records.Read[records.Refusal](node.Refusal(id)); err == nil && gone(record.Bundle) {
			_ = os.Remove(node.Refusal(id))
		}
	}
}

func forgetContainers(ended func(records.Container) bool) {
	for _, id := range recorded(node.ContainerRecord("x")) {
		if record, err := records.Read[records.Container](node.ContainerRecord(id)); err == nil && ended(record) {
			_ = os.Remove(node.ContainerRecord(id))
		}
	}
}

// recorded lists the ids that have a record beside the given one.
func recorded(beside string) []string {
	entries, _ := os.ReadDir(filepath.Dir(beside))
	var ids []string
	for _, entry := range entries {
		if id, found := strings.CutSuffix(entry.Name(), ".json"); found && pod.ValidID(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func gone(bundle string) bool {
	_, err := os.Lstat(bundle)
	return os.IsNotExist(err)
}
