// Package cmdline reads the command line that containerd's shim gives an OCI runtime.
//
// It knows runc's and crun's flags only as far as it must to find the sub-command, its options and the container's id.
// What it does not understand is left to the inner runtime, which gets the very same arguments.
package cmdline

import (
	"path/filepath"
	"strings"
)

// Call is one parsed command line.
type Call struct {
	Command   string   // the sub-command: create, start, exec, ...; empty when there is none
	Root      string   // --root: the runtime's own state
	Log       string   // --log
	LogFormat string   // --log-format, "text" or "json"
	args      []string // what follows the sub-command
}

// Flags in front of the sub-command that take no value. Every other flag there takes one, as `--x y` or `--x=y`.
var globalSwitches = map[string]bool{
	"debug": true, "systemd-cgroup": true, "help": true, "h": true, "version": true, "v": true,
}

// Flags of the sub-commands that take no value.
var commandSwitches = map[string]bool{
	"all": true, "a": true, "stats": true, "leave-running": true, "tcp-established": true, "ext-unix-sk": true,
	"shell-job": true, "lazy-pages": true, "file-locks": true, "pre-dump": true, "auto-dedup": true,
	"detach": true, "d": true, "force": true, "f": true, "tty": true, "t": true, "no-pivot": true,
	"no-new-keyring": true, "no-new-privs": true, "no-subreaper": true, "ignore-paused": true, "keep": true,
	"help": true, "h": true,
}

// Parse reads the arguments after the program's name. It never fails: what it cannot read has no Command.
func Parse(args []string) Call {
	var call Call
	for i := 0; i < len(args); i++ {
		name, value, inline := flag(args[i])
		if name == "" {
			call.Command, call.args = args[i], args[i+1:]
			return call
		}
		if !inline && !globalSwitches[name] {
			i++
			if i == len(args) {
				return call
			}
			value = args[i]
		}
		switch name {
		case "root":
			call.Root = value
		case "log":
			call.Log = value
		case "log-format":
			call.LogFormat = value
		}
	}
	return call
}

// Option gives the value of a flag of the sub-command under any of its names.
func (c Call) Option(names ...string) (string, bool) {
	value, found := "", false
	c.walk(func(name, v string) {
		for _, wanted := range names {
			if name == wanted {
				value, found = v, true
			}
		}
	})
	return value, found
}

// Has says that a switch of the sub-command is given under any of its names.
func (c Call) Has(names ...string) bool {
	_, found := c.Option(names...)
	return found
}

// Bundle gives the folder of --log: containerd keeps each container's log in its own bundle.
func (c Call) Bundle() string { return filepath.Dir(c.Log) }

// ID gives the container's id: the first argument of the sub-command that is no flag.
func (c Call) ID() string {
	rest := c.walk(func(string, string) {})
	if len(rest) == 0 {
		return ""
	}
	return rest[0]
}

// walk calls seen for each flag of the sub-command and gives what follows the flags.
func (c Call) walk(seen func(name, value string)) []string {
	for i := 0; i < len(c.args); i++ {
		if c.args[i] == "--" {
			return c.args[i+1:]
		}
		name, value, inline := flag(c.args[i])
		if name == "" {
			return c.args[i:]
		}
		if !inline && !commandSwitches[name] {
			i++
			if i == len(c.args) {
				return nil
			}
			value = c.args[i]
		}
		seen(name, value)
	}
	return nil
}

// flag splits `--name=value`, `--name` and `-n`; the name is empty for anything else.
func flag(arg string) (name, value string, inline bool) {
	if len(arg) < 2 || arg[0] != '-' {
		return "", "", false
	}
	name = strings.TrimPrefix(arg[1:], "-")
	if before, after, found := strings.Cut(name, "="); found {
		return before, after, true
	}
	return name, "", false
}
