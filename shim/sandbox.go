package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
	"flox.dev/flox-node/shim/internal/realise"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/report"
)

// longestStart is below the kubelet's own limit for the start of a container, which is two minutes.
const longestStart = 100

// createSandbox resolves the pod's environment once for all its containers. It happens here, and not in the first
// container, because the kubelet retries a failed sandbox under every restart policy.
//
// What only the pod's author can cure would be retried in vain, and nobody who waits for the pod would be told. So the
// sandbox passes, and the first container that starts fails with the reason: see admit.
func createSandbox(
	id, bundle string, annotations pod.Annotations, policy node.Policy, event *report.Event,
) error {
	forgetEnded()
	of, err := annotations.Pod()
	if err != nil {
		return err
	}
	if of.SandboxID != id {
		return fmt.Errorf("the sandbox %q calls itself %q", id, of.SandboxID)
	}
	event.Namespace, event.Pod, event.Sandbox = of.Namespace, of.Name, of.SandboxID
	warn(*event, annotations.Warnings())
	err = resolve(of, bundle, annotations, policy, event)
	var refusal *realise.Refusal
	if !errors.As(err, &refusal) || !refusal.Final {
		return err
	}
	event.Level, event.Message = "error", err.Error()
	return records.Write(node.Refusal(id), records.NewRefusal(of, bundle))
}

// admit lets a container of a pod start: any, unless its sandbox was let pass with a reason. Then that is asked for
// again, so that a restarted container finds out by itself that the reason is gone.
func admit(annotations pod.Annotations, policy node.Policy, event *report.Event) error {
	of, err := annotations.Pod()
	if err != nil {
		return err
	}
	refusal, err := records.Read[records.Refusal](node.Refusal(of.SandboxID))
	if os.IsNotExist(err) {
		return nil
	}
	event.Namespace, event.Pod, event.Sandbox = of.Namespace, of.Name, of.SandboxID
	if err != nil {
		return err
	}
	policy.Realise.WaitS = min(policy.Realise.WaitS, longestStart)
	if err := resolve(of, refusal.Bundle, annotations, policy, event); err != nil {
		return err
	}
	return os.Remove(node.Refusal(of.SandboxID))
}

// resolve finds the environment that the pod gets, and holds and records it.
func resolve(of pod.Pod, bundle string, annotations pod.Annotations, policy node.Policy, event *report.Event) error {
	began := time.Now()
	wishes, err := annotations.Wishes()
	if err != nil {
		return &realise.Refusal{Message: err.Error(), Code: "bad-request", Final: true}
	}
	if wishes.NixMutable && !policy.InNamespace(of.Namespace).NixMutable {
		return &realise.Refusal{
			Message: "the policy does not allow flox.dev/nix-mutable in the namespace " + of.Namespace + " " +
				"(pods.nix_mutable): remove the annotation",
			Code: "not-allowed", Final: true,
		}
	}
	event.Environment, event.Generation = wishes.Reference.Environment, wishes.Reference.Generation
	resolution, detail, err := realise.Run(records.NewRequest(wishes, of), policy)
	event.Millis = time.Since(began).Milliseconds()
	if err != nil {
		event.Message = detail
		return err
	}
	event.Generation, event.StorePath = resolution.Generation, resolution.StorePath
	if detail != "" {
		event.Level, event.Message = "warning", detail
	}
	// The root before the look: what is there after it was made stays.
	err = node.Symlink(resolution.StorePath, node.PodRoot(of.SandboxID))
	if err == nil {
		_, err = resolvedClosure(resolution)
	}
	if err == nil {
		err = records.Write(node.PodRecord(of.SandboxID), records.NewPod(of, bundle, resolution))
	}
	if err != nil {
		_ = os.Remove(node.PodRecord(of.SandboxID))
		_ = os.Remove(node.PodRoot(of.SandboxID))
	}
	return err
}
