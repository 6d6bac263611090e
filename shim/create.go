package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/inner"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/report"
	"flox.dev/flox-node/shim/internal/spec"
	"flox.dev/flox-node/shim/internal/view"
)

// contextFile is the bundle's file that the container sees as activation.ContextFile.
const contextFile = "flox-ctx.json"

// create prepares a bundle for the runtime that creates its container. What is neither a sandbox nor a container of a
// pod is otherwise none of our business.
func create(call cmdline.Call, policy node.Policy, runtime string) error {
	bundle, found := call.Option("bundle", "b")
	if !found {
		bundle = "."
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return err
	}
	config, err := spec.ReadConfig(bundle)
	if err != nil {
		return err
	}
	annotations := pod.Annotations(config.Annotations)
	err = inner.Keep(bundle, runtime)
	if err != nil && (annotations.IsSandbox() || annotations.IsContainer()) {
		return err
	}
	event := report.Event{Level: "info", Container: call.ID()}
	rules := policy.InNamespace(annotations.Namespace())
	switch {
	case rules.WithoutEnvironment == "plain" && !annotations.HasEnvironment():
		return nil
	case annotations.IsSandbox():
		event.Event = "sandbox"
		err = createSandbox(call.ID(), bundle, annotations, policy, &event)
	case annotations.IsContainer():
		event.Event = "container"
		if err = admit(annotations, policy, &event); err != nil {
			break
		}
		if annotations.Skipped() || rules.Skips(annotations.ContainerName()) {
			return nil
		}
		err = createContainer(call.ID(), bundle, config, annotations, policy, &event)
	default:
		return nil
	}
	if err != nil {
		event.Level = "error"
		if event.Message == "" {
			event.Message = err.Error()
		} else {
			event.Message = err.Error() + ": " + event.Message
		}
	}
	report.Log(event)
	return err
}

// warn tells what has no effect, once for a pod.
func warn(event report.Event, warnings []string) {
	event.Level = "warning"
	for _, event.Message = range warnings {
		report.Log(event)
	}
}

// createContainer rewrites the bundle of a container so that its command runs in the environment of its pod.
func createContainer(
	id, bundle string, config *spec.Config, annotations pod.Annotations, policy node.Policy, event *report.Event,
) error {
	of, err := annotations.Pod()
	if err != nil {
		return err
	}
	event.Namespace, event.Pod, event.Sandbox = of.Namespace, of.Name, of.SandboxID
	if !pod.ValidID(id) {
		return fmt.Errorf("%q is no id of a container", id)
	}
	record, err := records.Read[records.Pod](node.PodRecord(of.SandboxID))
	if err != nil {
		if os.IsNotExist(err) {
			return fmt.Errorf("this node has no record of the pod's environment (%s): delete the pod, so that it is "+
				"created anew", node.PodRecord(of.SandboxID))
		}
		return err
	}
	resolution := record.Resolution
	event.Environment, event.Generation = resolution.Environment, resolution.Generation
	event.StorePath = resolution.StorePath
	closure, err := resolvedClosure(resolution)
	if err != nil {
		return err
	}
	root := config.Root
	if !filepath.IsAbs(root) {
		root = filepath.Join(bundle, root)
	}
	tree, base, err := makeRoom(root, bundle, config.Mounts)
	if err != nil {
		return err
	}
	shown := activation.NewView(closure)
	environment := activation.Environment{
		View: shown, StorePath: resolution.StorePath, Name: resolution.Environment, Mode: resolution.Mode,
	}
	if len(config.Process.Args) == 0 {
		return errors.New("the container has no command")
	}
	if err := staysInItsRoot(config); err != nil {
		return err
	}
	rules := policy.InNamespace(of.Namespace)
	wishes, err := annotations.Wishes()
	if err != nil {
		return err
	}
	image, err := openRoot(root, config)
	if err != nil {
		return err
	}
	defer image.Close()
	if name := annotations.ContainerName(); !annotations.Chosen() && bringsCommand(image, config.Process) {
		warn(*event, []string{fmt.Sprintf("the image brings the command %.80q itself, and the container %q runs it in the "+
			"environment: if it should run as its image says, list it in flox.dev/skip-containers, or list those that "+
			"should not in flox.dev/only-containers", config.Process.Args[0], name)})
	}
	// Room for two forms of all variables, of which there may be 6 MiB. It comes before what is mounted in it.
	err = config.AddMount(spec.Tmpfs(activation.RuntimeDir, "16m", spec.User{}, os.ModeSticky|0o777))
	if err == nil {
		_, err = tree.Mount(activation.RuntimeDir, "")
	}
	if err == nil {
		err = furnish(image, config, &environment, resolution, rules, wishes.NixMutable, *event)
	}
	if err != nil {
		return err
	}
	wholeStore := rules.View == "store" && !wishes.NixMutable
	if wishes.NixMutable {
		if closure, base, err = makeMutable(image, root, config, &environment, record, closure, policy); err != nil {
			return fmt.Errorf("flox.dev/nix-mutable: %w", err)
		}
	}
	if wholeStore && base == view.Present {
		return errors.New("the image has a /nix of its own, which the node's whole store would hide (pods.view in the " +
			"policy): use an image without one, or list the container in flox.dev/skip-containers")
	}
	notOurs := wholeStore || base == view.Present // more is below /nix than the closure
	if command := config.Process.Args[0]; !notOurs || !strings.HasPrefix(command, "/nix/") {
		if err := checkCommand(tree, shown, command, resolution.Environment); err != nil {
			return err
		}
	}
	launcher, err := os.Executable()
	if err != nil {
		return err
	}
	start, err := environment.Plan(append([]string{activation.Launcher}, config.Process.Args...))
	if err != nil {
		return err
	}
	env, dropped := activation.Clean(config.Process.Env)
	if len(dropped) > 0 {
		warn(*event, []string{"the container's variables " + strings.Join(dropped, ", ") + " were dropped: Flox sets them itself"})
	}
	if start.Warning != "" {
		warn(*event, []string{start.Warning})
	}
	if err := config.AddMount(spec.Bind(launcher, activation.Launcher)); err != nil {
		return err
	}
	if start.Context != nil {
		source := filepath.Join(bundle, contextFile)
		if err := node.WriteFile(source, start.Context, 0o444); err != nil {
			return err
		}
		if err := config.AddMount(spec.Bind(source, activation.ContextFile)); err != nil {
			return err
		}
	}
	if wholeStore {
		err = view.AddStore(config)
	} else {
		err = view.Add(config, bundle, root, closure, base)
	}
	if err != nil {
		return err
	}
	config.Process.Args = start.Args
	config.Process.Env = append(activation.Defer(env), start.Env...)
	// As for `flox activate -r`: where the command is started. The activation itself drops it.
	config.Process.Env = append(config.Process.Env, activation.Later("FLOX_ENV_PROJECT="+path.Join("/", config.Process.Cwd)))
	if err := config.Write(); err != nil {
		return err
	}
	return records.Write(node.ContainerRecord(id),
		records.NewContainer(id, annotations.ContainerName(), bundle, record, !annotations.ExecSkipped()))
}

// resolvedClosure gives the names below /nix/store of the environment's closure, once all of it is there.
func resolvedClosure(resolution records.Resolution) ([]string, error) {
	closure, err := view.Closure(resolution.StorePath)
	if err != nil {
		return nil, fmt.Errorf("environment %s, generation %d, is not complete on this node (%w): delete the pod, so "+
			"that it is fetched again", resolution.Environment, resolution.Generation, err)
	}
	return closure, nil
}

// staysInItsRoot refuses what leaves the container's root, and /nix with it, for an overlay of it: jobs of GitLab that can
// be suspended. Their entrypoint (executors/kubernetes/overlay_entrypoint.sh) would only say that its command is missing.
func staysInItsRoot(config *spec.Config) error {
	for _, mount := range config.Mounts {
		if path.Clean("/"+mount.Destination) == "/runner-overlay-init" {
			return errors.New("GitLab's suspend and resume (FF_SUSPENDABLE_ENVIRONMENTS) leaves the container's root for an " +
				"overlay that does not have the environment's /nix: leave that feature flag off for jobs on Flox nodes")
		}
	}
	return nil
}
