// Package view shows a container the closure of its environment, and nothing else, as /nix.
//
// Every store path is a bind mount of its own in the container's mount namespace, made by a hook while the runtime
// creates the container: nothing of it is on a disk, on the host or left behind, and equal paths of two environments
// cost nothing twice. As entries of config.json the same mounts would cost the runtime ten times as much.
package view

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path"
	"strings"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
)

const maxList = 16 << 20

// Closure gives the names below /nix/store of all that a built environment needs, itself first, each once. Flox keeps the
// list in the environment. A path that is not in the store is an error.
func Closure(storePath string) ([]string, error) {
	list := node.Path(path.Join(storePath, "requisites.txt"))
	data, err := node.Read(list, maxList)
	if err != nil {
		return nil, err
	}
	names, seen := []string{path.Base(storePath)}, map[string]bool{path.Base(storePath): true}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := lines.Text()
		if !records.ValidStorePath(line) {
			return nil, fmt.Errorf("%s holds %.80q, which is no store path", list, line)
		}
		name := strings.TrimPrefix(line, "/nix/store/")
		if seen[name] {
			continue
		}
		if _, err := os.Lstat(node.Path(line)); err != nil {
			return nil, err
		}
		names, seen[name] = append(names, name), true
	}
	return names, lines.Err()
}
