package main

import (
	"path"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/checkout"
	"flox.dev/flox-node/shim/internal/mutable"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/rootfs"
	"flox.dev/flox-node/shim/internal/spec"
	"flox.dev/flox-node/shim/internal/view"
)

// makeMutable gives a container a /nix in which packages can be installed, and the Flox CLI. It gives the names below
// /nix/store that are to be shown in it.
func makeMutable(
	image *rootfs.Root, folder string, config *spec.Config, environment *activation.Environment, record records.Pod,
	closure []string, policy node.Policy,
) ([]string, view.Base, error) {
	tools, err := mutable.FindTools()
	if err != nil {
		return nil, "", err
	}
	// An upgrade of the payload must not take the CLI away from the container.
	if err := node.Symlink(path.Dir(tools.CLI), toolsRoot(record.SandboxID)); err != nil {
		return nil, "", err
	}
	container := mutable.Container{
		Root: image, Folder: folder, Config: config, Resolution: record.Resolution, Closure: closure, Tools: tools,
	}
	shown, err := container.Add()
	if err != nil {
		return nil, "", err
	}
	environment.Link = checkout.Link(record.Resolution)
	own := container.Environment(activation.Get(config.Process.Env, "PATH", node.SearchPath()), policy)
	config.Process.Env = activation.Set(config.Process.Env, own)
	return shown, view.Present, nil
}

// toolsRoot is the symlink that keeps the Flox CLI of a sandbox's mutable containers.
func toolsRoot(sandboxID string) string { return node.PodRoot(sandboxID) + "-tools" }
