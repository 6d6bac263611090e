// Package spec edits the OCI runtime's configuration (config.json) and process files.
//
// Both are decoded only as deep as they are edited. Everything else stays the bytes that containerd wrote: fields of
// newer versions of the specification survive, and no number changes its form.
package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"syscall"

	"flox.dev/flox-node/shim/internal/node"
)

const maxSize = 16 << 20

type object map[string]json.RawMessage

// Mount is an entry of `mounts`, as far as the shim adds or judges any.
type Mount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Source      string   `json:"source,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Bind says that a file or a folder of the host is mounted.
func (m Mount) Bind() bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// Config is a container's config.json.
type Config struct {
	Annotations map[string]string
	Root        string // root.path as written: absolute, or relative to the bundle
	ReadOnly    bool   // root.readonly
	Users       []IDMap
	Groups      []IDMap
	Mounts      []Mount
	MountLabel  string // of SELinux, for what is mounted for the container; "" without SELinux
	Process     *Process

	file   file
	fields object
	mounts []json.RawMessage
}

// IDMap maps users or groups of a container with a user namespace to the host's.
type IDMap struct {
	ContainerID int `json:"containerID"`
	HostID      int `json:"hostID"`
	Size        int `json:"size"`
}

// Host gives the host's id for a container's; without a user namespace they are the same.
func Host(maps []IDMap, id int) int {
	for _, each := range maps {
		if id >= each.ContainerID && id-each.ContainerID < each.Size {
			return each.HostID + id - each.ContainerID
		}
	}
	return id
}

// Process is what one process of a container runs with.
type Process struct {
	Args []string
	Env  []string // NAME=value
	Cwd  string
	User User

	fields object
}

// User is whom a process runs as, in the container's numbers.
type User struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// ReadConfig reads a bundle's config.json.
func ReadConfig(bundle string) (*Config, error) {
	config := &Config{}
	data, err := config.file.read(path.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	if err := config.decode(data); err != nil {
		return nil, fmt.Errorf("%s: %w", config.file.path, err)
	}
	return config, nil
}

func (c *Config) decode(data []byte) error {
	if err := json.Unmarshal(data, &c.fields); err != nil {
		return err
	}
	var root struct {
		Path     string `json:"path"`
		ReadOnly bool   `json:"readonly"`
	}
	var linux struct {
		MountLabel string  `json:"mountLabel"`
		Users      []IDMap `json:"uidMappings"`
		Groups     []IDMap `json:"gidMappings"`
	}
	for name, into := range map[string]any{
		"annotations": &c.Annotations, "mounts": &c.mounts, "root": &root, "linux": &linux,
	} {
		if err := c.fields.get(name, into); err != nil {
			return err
		}
	}
	c.Root, c.ReadOnly = root.Path, root.ReadOnly
	c.MountLabel, c.Users, c.Groups = linux.MountLabel, linux.Users, linux.Groups
	for _, raw := range c.mounts {
		var mount Mount
		if err := json.Unmarshal(raw, &mount); err != nil {
			return fmt.Errorf("mounts: %w", err)
		}
		c.Mounts = append(c.Mounts, mount)
	}
	c.Process = &Process{}
	return c.Process.decode(c.fields["process"])
}

// AddMount appends a mount: what is mounted last lies on top.
func (c *Config) AddMount(mount Mount) error {
	raw, err := marshal(mount)
	if err != nil {
		return err
	}
	c.Mounts, c.mounts = append(c.Mounts, mount), append(c.mounts, raw)
	return nil
}

// Hook is a program that the runtime calls while it creates the container.
type Hook struct {
	Path    string   `json:"path"`
	Args    []string `json:"args"`    // the first one is the program's name
	Timeout int      `json:"timeout"` // seconds
}

// AddHook appends a hook to those that the runtime calls, on the host, once the container's mounts are made and before
// its root is entered.
func (c *Config) AddHook(hook Hook) error {
	var hooks object
	if err := c.fields.get("hooks", &hooks); err != nil {
		return err
	}
	if hooks == nil {
		hooks = object{}
	}
	var called []json.RawMessage
	if err := hooks.get("createRuntime", &called); err != nil {
		return fmt.Errorf("hooks: %w", err)
	}
	raw, err := marshal(hook)
	if err != nil {
		return err
	}
	if err := hooks.set("createRuntime", append(called, raw)); err != nil {
		return err
	}
	return c.fields.set("hooks", hooks)
}

// Write replaces config.json with the edited form, keeping mode and owner.
func (c *Config) Write() error {
	data, err := c.encode()
	if err != nil {
		return err
	}
	return c.file.write(data)
}

func (c *Config) encode() ([]byte, error) {
	process, err := c.Process.encode()
	if err != nil {
		return nil, err
	}
	c.fields["process"] = process
	if err := c.fields.set("mounts", c.mounts); err != nil {
		return nil, err
	}
	return marshal(c.fields)
}

// ConfiguredEnv reads from a bundle's config.json only the environment of the container's process.
func ConfiguredEnv(bundle string) ([]string, error) {
	var source file
	data, err := source.read(path.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var config struct {
		Process struct {
			Env []string `json:"env"`
		} `json:"process"`
	}
	err = json.Unmarshal(data, &config)
	return config.Process.Env, err
}

// RewriteProcess edits the file that `exec --process` names: edit gets the process and changes it.
//
// The file is written in place. Its only reader is the runtime that this program becomes, and where /tmp is a disk, a
// rename would start a write to it at every probe. When the write fails, the old content is put back.
func RewriteProcess(name string, edit func(*Process)) error {
	target, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer target.Close()
	if _, err := regular(target); err != nil {
		return err
	}
	old, err := io.ReadAll(io.LimitReader(target, maxSize))
	if err != nil {
		return err
	}
	var process Process
	if err := process.decode(old); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	edit(&process)
	data, err := process.encode()
	if err != nil {
		return err
	}
	if err := overwrite(target, data); err != nil {
		return errors.Join(err, overwrite(target, old))
	}
	return nil
}

func overwrite(target *os.File, data []byte) error {
	if _, err := target.WriteAt(data, 0); err != nil {
		return err
	}
	return target.Truncate(int64(len(data)))
}

func (p *Process) decode(data []byte) error {
	if len(data) == 0 {
		return fmt.Errorf("there is no process")
	}
	if err := json.Unmarshal(data, &p.fields); err != nil {
		return err
	}
	if p.fields == nil {
		return fmt.Errorf("there is no process")
	}
	return errors.Join(
		p.fields.get("args", &p.Args), p.fields.get("env", &p.Env), p.fields.get("cwd", &p.Cwd), p.fields.get("user", &p.User),
	)
}

func (p *Process) encode() ([]byte, error) {
	if err := p.fields.set("args", p.Args); err != nil {
		return nil, err
	}
	if err := p.fields.set("env", p.Env); err != nil {
		return nil, err
	}
	return marshal(p.fields)
}

func (o object) get(name string, into any) error {
	raw, found := o[name]
	if !found {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (o object) set(name string, value any) error {
	raw, err := marshal(value)
	o[name] = raw
	return err
}

func marshal(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimRight(buffer.Bytes(), "\n"), err
}

// file is a regular file that is read and later replaced.
type file struct {
	path     string
	mode     os.FileMode
	uid, gid int
}

func (f *file) read(name string) ([]byte, error) {
	source, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	info, err := regular(source)
	if err != nil {
		return nil, err
	}
	f.path, f.mode = name, info.Mode().Perm()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		f.uid, f.gid = int(stat.Uid), int(stat.Gid)
	}
	return io.ReadAll(io.LimitReader(source, maxSize))
}

func regular(source *os.File) (os.FileInfo, error) {
	info, err := source.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxSize) {
		err = fmt.Errorf("%s is no regular file of at most %d MiB", source.Name(), maxSize>>20)
	}
	return info, err
}

func (f *file) write(data []byte) error {
	return node.ReplaceFile(f.path, data, f.mode, f.uid, f.gid)
}
