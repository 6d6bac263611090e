package main

import (
	"fmt"
	"path/filepath"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/rootfs"
	"flox.dev/flox-node/shim/internal/spec"
	"flox.dev/flox-node/shim/internal/view"
)

// makeRoom lays the container's own mounts over its root file system as the runtime will, and refuses a container whose
// files or volumes lie where the environment goes. Ours are in the root of the tree: so none of them is below a volume,
// through which it would reach the host or hide what the pod put there.
func makeRoom(root, bundle string, mounts []spec.Mount) (*rootfs.Tree, view.Base, error) {
	tree := rootfs.NewTree(root)
	for _, mount := range mounts {
		source := ""
		if mount.Bind() {
			if source = mount.Source; !filepath.IsAbs(source) {
				source = filepath.Join(bundle, source)
			}
		}
		place, err := tree.Mount(mount.Destination, source)
		if err != nil {
			return nil, "", fmt.Errorf("the pod mounts a volume at a place that cannot be resolved: %w", err)
		}
		shown := fmt.Sprintf("%q", mount.Destination)
		if place != filepath.Clean("/"+mount.Destination) {
			shown += fmt.Sprintf(", which is %s in this container", place)
		}
		for _, ours := range []string{"/nix", activation.RuntimeDir} {
			if rootfs.Within(place, ours) {
				return nil, "", fmt.Errorf("the pod mounts a volume at %s, and %s is the environment's in a pod with "+
					"runtimeClassName flox: mount it elsewhere", shown, ours)
			}
			if rootfs.Within(ours, place) {
				return nil, "", fmt.Errorf("the pod mounts a volume at %s, and the environment's %s would lie in it: mount it "+
					"elsewhere", shown, ours)
			}
		}
	}
	has, err := rootfs.HasNix(root)
	if err != nil {
		return nil, "", fmt.Errorf("the image's /nix cannot be used: %w", err)
	}
	base := view.Own
	if has {
		base = view.Present
	}
	if err := rootfs.CheckPlace(root, activation.RuntimeDir); err != nil {
		return nil, "", fmt.Errorf("the image has something at %s, which is the environment's in a pod with runtimeClassName "+
			"flox (%w): use an image without it, or list the container in flox.dev/skip-containers",
			activation.RuntimeDir, err)
	}
	return tree, base, nil
}
