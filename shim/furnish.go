package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/checkout"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/report"
	"flox.dev/flox-node/shim/internal/rootfs"
	"flox.dev/flox-node/shim/internal/spec"
	"flox.dev/flox-node/shim/internal/userland"
)

// plainCache is $FLOX_ENV_CACHE of an image that can take no checkout.
const plainCache = activation.RuntimeDir + "/cache"

// furnish adds to a container what its image lacks: the checkout at /.flox, a folder for the environment's cache, and
// the userland. Nothing of it decides whether the container starts: an image that cannot take it goes without, and the
// node's log says so.
func furnish(
	root *rootfs.Root, config *spec.Config, environment *activation.Environment, resolution records.Resolution,
	rules node.Pods, mutable bool, event report.Event,
) error {
	var warnings []string
	environment.Cache = checkout.Cache
	err := checkout.Add(root, environment.View, resolution, mutable)
	if err != nil && mutable {
		return fmt.Errorf("flox.dev/nix-mutable needs a checkout at %s: %w", checkout.Folder, err)
	}
	if err != nil {
		warnings = append(warnings, "there is no checkout at "+checkout.Folder+": "+err.Error())
		environment.Cache = plainCache
	}
	// The checkout of a mutable container is on disk, and can be written with a read-only root, too.
	if err != nil || config.ReadOnly && !mutable || rules.CacheFolder == "memory" {
		size := fmt.Sprintf("%.0fm", max(rules.CacheMiB, 1))
		err = config.AddMount(spec.Tmpfs(environment.Cache, size, spec.User{}, os.ModeSticky|0o777))
		if err != nil {
			return err
		}
	}
	if rules.Userland != "off" || mutable { // Flox and Nix need /bin/sh, /etc/passwd and /tmp
		container := userland.Container{
			Root: root, Config: config, Tools: userland.Package(), Bash: environment.Bash(),
		}
		if err := container.Add(); err != nil {
			warnings = append(warnings, "the image goes without a part of the userland: "+err.Error())
		}
	}
	// flox-activations needs a HOME. Where the image knows its users, the runtime sets the right one.
	if !activation.Has(config.Process.Env, "HOME") && !root.Has("/etc/passwd") {
		config.Process.Env = append(config.Process.Env, "HOME=/")
	}
	warn(event, warnings)
	return nil
}

// openRoot opens a container's root file system, as its root user.
func openRoot(folder string, config *spec.Config) (*rootfs.Root, error) {
	owner := rootfs.IDs{UID: os.Geteuid(), GID: os.Getegid()}
	if len(config.Users) > 0 {
		owner = rootfs.IDs{UID: spec.Host(config.Users, 0), GID: spec.Host(config.Groups, 0)}
	}
	return rootfs.Open(folder, owner)
}

// bringsCommand says that the image itself has the command of the container.
func bringsCommand(image *rootfs.Root, process *spec.Process) bool {
	command := process.Args[0]
	if strings.Contains(command, "/") {
		return image.Has(path.Join("/", process.Cwd, command)) || path.IsAbs(command) && image.Has(command)
	}
	for _, folder := range filepath.SplitList(activation.Get(process.Env, "PATH", node.SearchPath())) {
		if path.IsAbs(folder) && image.Has(path.Join(folder, command)) {
			return true
		}
	}
	return false
}
