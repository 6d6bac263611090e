// Package userland gives a container what programs expect and its image does not have: a shell and the usual commands,
// /tmp and /var/tmp, the names of its users, and a home. Nothing that the image has is replaced.
package userland

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"flox.dev/flox-node/shim/internal/activation"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/rootfs"
	"flox.dev/flox-node/shim/internal/spec"
)

// Tools is where a container finds the payload's busybox, when its image has no shell.
const Tools = activation.RuntimeDir + "/tools"

const tmpSize = "64m"

var (
	// Where programs are looked for by default.
	folders = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	// Where CI systems look for a shell. Those of /usr/local are the image's alone.
	shells = []string{"/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"}
	// What is called by its whole path most often, in hooks, probes and first lines of scripts.
	usual = []string{
		"cat", "chmod", "cp", "date", "echo", "false", "grep", "hostname", "kill", "ln", "ls", "mkdir", "mv", "ps", "rm",
		"sed", "sh", "sleep", "tar", "touch", "true",
	}
)

// Container is what the userland of a container depends on.
type Container struct {
	Root   *rootfs.Root
	Config *spec.Config
	Tools  string // the folder on the host with the busybox package; empty: none
	Bash   string // the environment's own bash as the container sees it; empty: none
}

// Add completes the root file system, and the configuration with a HOME and with what has to be mounted.
func (c Container) Add() error {
	for _, add := range []func() error{c.addBash, c.addTools, c.addTmp, c.addUsers} {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

func (c Container) addBash() error {
	if c.Bash == "" || slices.ContainsFunc(shells, c.has) {
		return nil
	}
	return c.Root.Link(shells[0], c.Bash)
}

func (c Container) addTmp() error {
	for _, folder := range []string{"/tmp", "/var/tmp"} {
		if c.has(folder) {
			continue
		}
		if err := c.writable(folder, spec.User{}, os.ModeSticky|0o777); err != nil {
			return err
		}
	}
	return nil
}

func (c Container) addTools() error {
	// An image whose one shell has the commands in itself (a static busybox) has none for the bash that came beside it.
	commands := c.has("/bin/sh") && (c.Bash == "" || c.hasCommand("chmod"))
	env := c.has("/usr/bin/env")
	if c.Tools == "" || commands && env {
		return nil
	}
	if !commands {
		if err := c.addCommands(); err != nil {
			return err
		}
	}
	if !env {
		if err := c.link("/usr/bin/env", "env"); err != nil {
			return err
		}
	}
	return c.Config.AddMount(spec.Bind(c.Tools, Tools))
}

func (c Container) link(name, tool string) error {
	return c.Root.Link(name, path.Join(Tools, "bin", tool))
}

// addCommands links the commands that are nowhere on the default PATH.
func (c Container) addCommands() error {
	taken := map[string]bool{}
	empty := true
	for _, folder := range folders {
		for _, name := range c.Root.Names(folder) {
			taken[name] = true
		}
		empty = empty && !c.Root.Has(folder)
	}
	commands := usual
	if empty {
		// One link for all of them, which are some hundreds.
		if err := c.link("/sbin", ""); err != nil {
			return err
		}
	} else {
		entries, err := os.ReadDir(path.Join(c.Tools, "bin"))
		if err != nil {
			return err
		}
		commands = nil
		for _, entry := range entries {
			commands = append(commands, entry.Name())
		}
	}
	for _, command := range commands {
		if taken[command] || command == "env" {
			continue
		}
		if err := c.link("/bin/"+command, command); err != nil {
			return err
		}
	}
	return nil
}

// addUsers names root, nobody and who runs, where the image names nobody, and gives a home to who has none.
func (c Container) addUsers() error {
	if c.has("/etc/passwd") {
		return nil
	}
	user := c.Config.Process.User
	name, home := "user", "/home/user"
	passwd := []string{"root:x:0:0:root:/root:/bin/sh", "nobody:x:65534:65534:nobody:/nonexistent:/bin/sh"}
	group := []string{"root:x:0:", "nobody:x:65534:"}
	switch user.UID {
	case 0:
		name, home = "root", "/root"
	case 65534:
		name, home = "nobody", "/home/nobody"
		passwd[1] = "nobody:x:65534:65534:nobody:" + home + ":/bin/sh"
	default:
		passwd = append(passwd, fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh", name, user.UID, user.GID, home))
	}
	if user.GID != 0 && user.GID != 65534 {
		group = append(group, fmt.Sprintf("user:x:%d:", user.GID))
	}
	if err := c.Root.File("/etc/passwd", lines(passwd), 0o644); err != nil {
		return err
	}
	if !c.has("/etc/group") {
		if err := c.Root.File("/etc/group", lines(group), 0o644); err != nil {
			return err
		}
	}
	if activation.Has(c.Config.Process.Env, "HOME") {
		return nil
	}
	c.Config.Process.Env = append(c.Config.Process.Env, "HOME="+home)
	if c.has(home) {
		return nil
	}
	return c.writable(home, user, 0o700)
}

// writable makes a folder for a user: of the container's own disk layer, or in memory where its root is read-only.
func (c Container) writable(name string, user spec.User, mode os.FileMode) error {
	if err := c.Root.Folder(name, mode); err != nil {
		return err
	}
	if user != (spec.User{}) {
		owner := rootfs.IDs{UID: spec.Host(c.Config.Users, user.UID), GID: spec.Host(c.Config.Groups, user.GID)}
		if err := c.Root.Give(name, owner); err != nil {
			return err
		}
	}
	if !c.Config.ReadOnly {
		return nil
	}
	return c.Config.AddMount(spec.Tmpfs(name, tmpSize, user, mode))
}

func (c Container) hasCommand(name string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return c.has(path.Join(folder, name)) })
}

// has says that the image has something at a path, or that the pod mounts something there or above.
func (c Container) has(name string) bool {
	if c.Root.Has(name) {
		return true
	}
	for _, mount := range c.Config.Mounts {
		if place := path.Clean("/" + mount.Destination); place != "/" && rootfs.Within(name, place) {
			return true
		}
	}
	return false
}

// Package finds the busybox of the payload: the folder on the host; empty when the payload has none.
func Package() string {
	program, err := os.Readlink(node.Busybox())
	if err != nil {
		return ""
	}
	folder, found := strings.CutSuffix(program, "/bin/busybox")
	if !found {
		return ""
	}
	return node.Path(folder)
}

func lines(of []string) []byte { return []byte(strings.Join(of, "\n") + "\n") }
