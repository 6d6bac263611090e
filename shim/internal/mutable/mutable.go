// Package mutable makes a container's /nix one in which packages can be installed (flox.dev/nix-mutable).
//
// Its store is a folder of the container's own disk layer, so what is installed is the pod's storage and ends with it.
// The environment's closure and that of the Flox CLI are shown in it read-only, as in every container, and a Nix database
// of its own knows exactly those. Nothing of the host's store is ever writable.
package mutable

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/checkout"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/rootfs"
	"flox.dev/flox-node/shim/internal/spec"
)

const (
	maxManifest = 16 << 20
	maxUsers    = 1 << 20
	deadline    = 30 * time.Second
)

// shortLived are settings of a store that ends with its container: nothing is waited for that only a power cut loses, and
// no 8 MiB are set aside for collecting garbage on a full disk.
const shortLived = "fsync-metadata = false\ngc-reserved-space = 0"

// Tools is the payload's Flox CLI, and its Nix.
type Tools struct {
	CLI     string   // the program's folder, /nix/store/...-flox/bin
	Nix     string   // the folder of nix-store and the others
	Closure []string // names below /nix/store of what they need
}

// FindTools reads from the payload's manifest what the CLI needs.
func FindTools() (Tools, error) {
	data, err := node.Read(node.PayloadManifest(), maxManifest)
	if err != nil {
		return Tools{}, err
	}
	return readTools(data)
}

func readTools(manifest []byte) (Tools, error) {
	var payload struct {
		EntryPoints map[string]string `json:"entry_points"`
		StorePaths  []struct {
			Path       string   `json:"path"`
			References []string `json:"references"`
		} `json:"store_paths"`
	}
	if err := json.Unmarshal(manifest, &payload); err != nil {
		return Tools{}, fmt.Errorf("the payload's manifest is damaged: %w", err)
	}
	references := map[string][]string{}
	for _, each := range payload.StorePaths {
		references[each.Path] = each.References
	}
	flox := payload.EntryPoints["flox"]
	if flox == "" {
		return Tools{}, errors.New("the payload names no Flox CLI")
	}
	needed := map[string]bool{}
	nix := payload.EntryPoints["nix-store"]
	for todo := []string{storePath(flox), storePath(nix)}; len(todo) > 0; {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !needed[next] {
			if !records.ValidStorePath(next) {
				return Tools{}, fmt.Errorf("the payload's manifest names %.80q", next)
			}
			needed[next] = true
			todo = append(todo, references[next]...)
		}
	}
	tools := Tools{CLI: path.Dir(flox), Nix: path.Dir(nix)}
	for each := range needed {
		tools.Closure = append(tools.Closure, path.Base(each))
	}
	sort.Strings(tools.Closure)
	return tools, nil
}

// storePath is /nix/store/NAME of a path in it.
func storePath(program string) string {
	parts := strings.SplitN(program, "/", 5)
	return strings.Join(parts[:min(4, len(parts))], "/")
}

// Container is one whose /nix is made.
type Container struct {
	Root       *rootfs.Root
	Folder     string // of the root file system on the host
	Config     *spec.Config
	Resolution records.Resolution
	Closure    []string // names below /nix/store
	Tools      Tools
}

// Add makes store, database, roots and checkout, and gives the names of all that is to be shown.
func (c Container) Add() ([]string, error) {
	if len(c.Config.Users) > 0 {
		return nil, errors.New("it cannot be had in a pod with a user namespace (hostUsers: false)")
	}
	if c.Root.Has("/nix/store") {
		return nil, errors.New("the image has a /nix of its own")
	}
	shown := union(c.Closure, c.Tools.Closure)
	if err := c.Root.Folder("/nix/store", 0o755); err != nil {
		return nil, err
	}
	if err := c.register(shown); err != nil {
		return nil, err
	}
	for name, target := range map[string]string{
		"cli": storePath(c.Tools.CLI), "nix": storePath(c.Tools.Nix), "environment": c.Resolution.StorePath,
	} {
		if err := c.Root.Link("/nix/var/nix/gcroots/flox-node/"+name, target); err != nil {
			return nil, err
		}
	}
	for _, kind := range append(kinds, "builds", "home") {
		if err := c.Root.Folder(folderOf(kind), 0o700); err != nil {
			return nil, err
		}
	}
	if err := c.give(); err != nil {
		return nil, err
	}
	if c.Config.ReadOnly {
		for _, place := range []string{"/nix", checkout.Folder} {
			if err := c.Config.AddMount(spec.Mount{
				Destination: place, Type: "bind", Source: filepath.Join(c.Folder, place),
				Options: []string{"rbind", "rprivate", "rw", "nosuid", "nodev"},
			}); err != nil {
				return nil, err
			}
		}
	}
	return shown, nil
}

// register writes the database: what the node's own says of these paths. Most of the time is Nix' start, so the one that
// reads and the one that writes start together.
func (c Container) register(shown []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	paths := make([]string, 0, len(shown)+1)
	paths = append(paths, "--dump-db")
	for _, name := range shown {
		paths = append(paths, "/nix/store/"+name)
	}
	var dumpSaid, loadSaid bytes.Buffer
	dump := nixStore(ctx, &dumpSaid, paths...)
	load := nixStore(ctx, &loadSaid, "--store", "local?root="+c.Folder, "--load-db")
	known, writing, err := os.Pipe()
	if err != nil {
		return err
	}
	dump.Stdout, load.Stdin = writing, known
	err = dump.Start()
	if err == nil {
		if err = load.Start(); err != nil {
			cancel()
			_ = dump.Wait()
		}
	}
	_, _ = known.Close(), writing.Close()
	if err != nil {
		return fmt.Errorf("its Nix database cannot be made: %w", err)
	}
	return errors.Join(ended("read", dump, &dumpSaid), ended("made", load, &loadSaid))
}

func nixStore(ctx context.Context, said *bytes.Buffer, arguments ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, node.NixStore(), arguments...)
	command.Env = []string{
		"PATH=" + node.SearchPath(), "LC_ALL=C", "HOME=/", "NIX_CONF_DIR=/var/empty",
		"NIX_CONFIG=build-users-group =\n" + shortLived,
	}
	command.Dir = "/"
	command.Stderr = said
	return command
}

func ended(what string, command *exec.Cmd, said *bytes.Buffer) error {
	if err := command.Wait(); err != nil {
		return fmt.Errorf("its Nix database cannot be %s: %w: %.300s", what, err, strings.TrimSpace(said.String()))
	}
	return nil
}

// give makes the folders that Nix and Flox write to those of the user who runs. All of them are ours: nothing that the
// image has is among them.
func (c Container) give() error {
	user := c.Config.Process.User
	if user.UID == 0 {
		return nil
	}
	if err := os.Lchown(filepath.Join(c.Folder, "nix/store"), user.UID, user.GID); err != nil {
		return err
	}
	for _, tree := range []string{"nix/var", strings.TrimPrefix(checkout.Folder, "/")} {
		err := filepath.WalkDir(filepath.Join(c.Folder, tree), func(name string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(name, user.UID, user.GID)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// kinds are the folders of their own that Flox and Nix ask for.
var kinds = []string{"cache", "config", "data", "state"}

// folderOf gives a folder in the container for what Flox and Nix keep: not every image has a home, or a /tmp, that can be
// written.
func folderOf(kind string) string { return path.Join("/nix/var/flox-node", kind) }

// Environment is what the Flox CLI needs in the container, beside what the pod says: the node's hub, binary caches and
// keys. No secret is among them.
func (c Container) Environment(searchPath string, policy node.Policy) []string {
	nix := policy.Nix
	env := []string{
		"PATH=" + strings.Join([]string{searchPath, c.Tools.CLI, c.Tools.Nix}, ":"),
		"FLOX_DISABLE_METRICS=true", "_FLOX_DISABLE_KEYRING=1", "_FLOX_TESTING_DISABLE_BG_SIDE_EFFECTS=true",
		"NIX_CONFIG=" + strings.Join([]string{
			"build-users-group =", "sandbox = false", "build-dir = " + folderOf("builds"), shortLived,
			"substituters = " + strings.Join(slices.Concat(nix.ExtraSubstituters, nix.Substituters), " "),
			"trusted-public-keys = " + strings.Join(slices.Concat(nix.TrustedKeys, nix.ExtraTrustedKeys), " "),
		}, "\n"),
	}
	for _, kind := range kinds {
		folder, name := folderOf(kind), strings.ToUpper(kind)
		env = append(env, "FLOX_"+name+"_DIR="+folder, "NIX_"+name+"_HOME="+folder)
	}
	if !c.named() {
		// Flox asks for a name, and Nix for a home that belongs to who runs.
		for variable, value := range map[string]string{"USER": "user", "HOME": folderOf("home")} {
			if !activation.Has(c.Config.Process.Env, variable) {
				env = append(env, variable+"="+value)
			}
		}
	}
	return append(env, policy.HubVariables()...)
}

// named says that the container's /etc/passwd knows who runs.
func (c Container) named() bool {
	users, err := c.Root.Read("/etc/passwd", maxUsers)
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(users), "\n") {
		fields := strings.Split(line, ":")
		if len(fields) > 2 && fields[2] == strconv.Itoa(c.Config.Process.User.UID) {
			return true
		}
	}
	return false
}

func union(lists ...[]string) []string {
	seen := map[string]bool{}
	var all []string
	for _, list := range lists {
		for _, each := range list {
			if !seen[each] {
				seen[each] = true
				all = append(all, each)
			}
		}
	}
	return all
}
