package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

// rancher is k3s and RKE2: it renders the configuration at every start, then is containerd's parent.
// Beside the double, in /usr/share/rancher, lie the base templates that the real one has in itself.
func rancher(args []string) error {
	if len(args) == 0 || (args[0] != "server" && args[0] != "agent") {
		return fmt.Errorf("unknown arguments %q", args)
	}
	home := "/var/lib/rancher/" + filepath.Base(os.Args[0])
	containerd := home + "/data/current/bin/containerd"
	folder := home + "/agent/etc/containerd/"
	release, err := major(containerd)
	if err != nil {
		return err
	}
	base, text := "v2", `{{ template "base" . }}`
	switch {
	case release != "1" && exists(folder+"config-v3.toml.tmpl"):
		base, text = "v3", read(folder+"config-v3.toml.tmpl")
	case exists(folder + "config.toml.tmpl"):
		text = read(folder + "config.toml.tmpl")
	case release != "1":
		base = "v3"
	}
	rendered, err := render(text, read("/usr/share/rancher/base-"+base+".toml"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(folder+"config.toml", rendered, 0o600); err != nil {
		return err
	}
	socket := "/run/k3s/containerd/containerd.sock"
	commands := [][]string{{containerd, "-c", folder + "config.toml", "-a", socket, "--state", "/run/k3s/containerd"}}
	if filepath.Base(os.Args[0]) == "rke2" { // k3s has the kubelet in itself
		commands = append(commands, kubelet(socket))
	}
	return supervise(commands...)
}

func render(text, base string) ([]byte, error) {
	compiled, err := template.New("compiled_template").Parse(text)
	if err != nil {
		return nil, err
	}
	if _, err := compiled.New("base").Parse(base); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = compiled.Execute(&out, map[string]any{"SystemdCgroup": false})
	return out.Bytes(), err
}

func kubelet(socket string) []string {
	wait := `until [ -S "$0" ]; do sleep 0.05; done; exec kubelet "--container-runtime-endpoint=unix://$0"`
	return []string{"/bin/sh", "-c", wait, socket}
}

func read(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return string(text)
}
