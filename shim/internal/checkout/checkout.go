// Package checkout makes what `flox pull --copy` leaves in a folder: `/.flox`, by which the Flox CLI knows the
// environment that it is in, and in which users' scripts look for the environment's programs.
package checkout

import (
	"encoding/json"
	"os"
	"path"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/rootfs"
)

const (
	// Folder is the checkout in the container.
	Folder = "/.flox"
	// Cache is $FLOX_ENV_CACHE, as below any checkout.
	Cache = Folder + "/cache"
)

// Link is the environment's link in the checkout: `/.flox/run/x86_64-linux.hello-run`.
func Link(of records.Resolution) string { return run(of, "-") }

// run gives a link's name. Flox before 1.13 joins name and mode with a dot, and users' scripts do.
func run(of records.Resolution, separator string) string {
	return path.Join(Folder, "run", of.System+"."+path.Base(of.Environment)+separator+of.Mode)
}

// Add makes the checkout in an image that has no /.flox. The Flox CLI can change a mutable one.
func Add(root *rootfs.Root, view activation.View, of records.Resolution, mutable bool) error {
	lock := path.Join(of.StorePath, "manifest.lock")
	locked, err := read(view, lock)
	if err != nil {
		return err
	}
	manifest, err := ManifestOf(locked)
	if err != nil {
		return err
	}
	pointer, err := json.Marshal(map[string]any{"name": path.Base(of.Environment), "version": 1})
	if err != nil {
		return err
	}
	add := []func() error{
		func() error { return root.Folder(Folder, 0o755) },
		func() error { return root.File(path.Join(Folder, "env.json"), pointer, 0o644) },
		func() error { return root.File(path.Join(Folder, "env/manifest.toml"), manifest, 0o644) },
		func() error {
			if mutable {
				return root.File(path.Join(Folder, "env/manifest.lock"), locked, 0o644)
			}
			return root.Link(path.Join(Folder, "env/manifest.lock"), lock)
		},
		func() error { return root.Link(run(of, "-"), of.StorePath) },
		func() error { return root.Link(run(of, "."), of.StorePath) },
		func() error { return root.Folder(Cache, os.ModeSticky|0o777) },
	}
	for _, each := range add {
		if err := each(); err != nil {
			return err
		}
	}
	return nil
}

// read gives a lock of the closure. The manifest that it was made of is not there, but its content is in the lock; what
// is lost are its comments.
func read(view activation.View, lock string) ([]byte, error) {
	resolved, _, err := view.Resolve(lock)
	if err != nil {
		return nil, err
	}
	return node.Read(view.Host(resolved), activation.MaxLock)
}
