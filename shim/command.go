package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/rootfs"
)

// Where the environment's hook may still make the program: its cache and what scripts use beside it.
var madeByHooks = []string{activation.RuntimeDir, "/.flox", "/tmp", "/var/tmp"}

// checkCommand refuses an absolute path that neither the container nor the environment has: so the failure is one of the
// start, as with any other runtime, and not a container that ran. Names are searched once the hook has made PATH.
func checkCommand(tree *rootfs.Tree, shown activation.View, command, environment string) error {
	if command == "" || command[0] != '/' {
		return nil
	}
	for _, dir := range madeByHooks {
		if rootfs.Within(command, dir) {
			return nil
		}
	}
	resolved, _, err := tree.Resolve(command)
	switch {
	case err != nil, tree.Covered(resolved): // a volume may be filled by the hook
		return nil
	case rootfs.Within(resolved, "/nix"):
		_, _, err = shown.Resolve(resolved)
	default:
		_, err = tree.Stat(resolved)
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("exec: %q: no such file or directory: neither the container's image nor the environment %s has it",
			command, environment)
	}
	return nil
}
