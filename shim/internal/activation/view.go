// Package activation says how a container's command is started inside an environment.
package activation

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"flox.dev/flox-node/shim/internal/node"
)

const maxSymlinks = 40

// View is what a container sees as /nix: out of the node's store, the paths of its environment's closure.
type View struct{ closure map[string]bool }

// NewView makes the view of some names below /nix/store.
func NewView(closure []string) View {
	view := View{make(map[string]bool, len(closure))}
	for _, name := range closure {
		view.closure[name] = true
	}
	return view
}

// Host gives the place on the host of a path below /nix. The path must have been resolved.
func (v View) Host(inContainer string) string { return node.Path(inContainer) }

// shows says whether the path is there in the container: a folder above the store paths, or in one of the closure.
func (v View) shows(inContainer string) bool {
	if inContainer == "/nix" || inContainer == "/nix/store" {
		return true
	}
	below, found := strings.CutPrefix(inContainer, "/nix/store/")
	name, _, _ := strings.Cut(below, "/")
	return found && v.closure[name]
}

// Resolve follows the symlinks of a path below /nix as the container would, without ever leaving the view, and says
// what is there. Packages may hold any symlink; one that leads out of the closure is an error.
func (v View) Resolve(inContainer string) (string, os.FileInfo, error) {
	resolved, rest := "/", strings.Split(strings.TrimPrefix(inContainer, "/"), "/")
	var info os.FileInfo
	for links := 0; len(rest) > 0; {
		next := path.Join(resolved, rest[0])
		rest = rest[1:]
		if !v.shows(next) {
			err := errors.New("which is not in the closure")
			if strings.HasPrefix(next, "/nix/") { // and what lies elsewhere is the image's, which is not asked
				err = fmt.Errorf("%w: %w", err, os.ErrNotExist)
			}
			return "", nil, fmt.Errorf("%s leads to %s, %w", inContainer, next, err)
		}
		var err error
		if info, err = os.Lstat(v.Host(next)); err != nil {
			return "", nil, fmt.Errorf("%s: %w", inContainer, err)
		}
		if info.Mode()&os.ModeSymlink == 0 {
			resolved = next
			continue
		}
		if links++; links > maxSymlinks {
			return "", nil, fmt.Errorf("%s: too many symlinks", inContainer)
		}
		target, err := os.Readlink(v.Host(next))
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(target) {
			resolved = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return resolved, info, nil
}

// executable resolves a path to a regular file that may be executed.
func (v View) executable(inContainer string) (string, error) {
	resolved, info, err := v.Resolve(inContainer)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is not executable", inContainer)
	}
	return resolved, nil
}

// shebang gives the interpreter that the first line of a resolved script names; empty when it is no script.
func (v View) shebang(script string) (string, error) {
	file, err := os.Open(v.Host(script))
	if err != nil {
		return "", err
	}
	defer file.Close()
	head := make([]byte, 512)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	line, _, _ := strings.Cut(string(head[:n]), "\n")
	line, isScript := strings.CutPrefix(line, "#!")
	if !isScript {
		return "", nil
	}
	words := strings.Fields(line)
	if len(words) == 0 || !path.IsAbs(words[0]) {
		return "", fmt.Errorf("the first line of %s names no interpreter", script)
	}
	return words[0], nil
}
