package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// k0s writes what it manages at every start. With containerd 1 it merges the drop-ins that have a CRI table into one file;
// with containerd 2 the root imports them, and from k0s 1.36 on it does not start beside one of schema 2,
// by its version or by a table of it
// (https://github.com/k0sproject/k0s/issues/7689). It writes nothing into the folder of drop-ins.
func k0s(_ []string) error {
	containerd := "/var/lib/k0s/bin/containerd"
	release, err := major(containerd)
	if err != nil {
		return err
	}
	managed := read("/usr/share/k0s/containerd-" + release + ".toml")
	if exists("/etc/k0s/containerd.toml") && !strings.HasPrefix(read("/etc/k0s/containerd.toml"), "# k0s_managed=true") {
		managed = "" // an administrator's: left as it is
	}
	if managed == "" {
		fmt.Println("not managed: /etc/k0s/containerd.toml")
	} else if err := os.WriteFile("/etc/k0s/containerd.toml", []byte("# k0s_managed=true\n"+managed), 0o600); err != nil {
		return err
	}
	drops, err := filepath.Glob("/etc/k0s/containerd.d/*.toml")
	if err != nil {
		return err
	}
	sort.Strings(drops)
	for _, drop := range drops {
		var declared struct {
			Version int
			Plugins map[string]any
		}
		if err := toml.Unmarshal([]byte(read(drop)), &declared); err != nil {
			return fmt.Errorf("%s: %w", drop, err)
		}
		if release != "1" && declared.Version != 0 && declared.Version != 3 {
			return fmt.Errorf("%s: version %d of the configuration is not supported", drop, declared.Version)
		}
		if _, old := declared.Plugins["io.containerd.grpc.v1.cri"]; release != "1" && old {
			return fmt.Errorf("%s: io.containerd.grpc.v1.cri is not supported any more", drop)
		}
	}
	if err := os.MkdirAll("/run/k0s", 0o755); err != nil {
		return err
	}
	if release == "1" {
		merged := map[string]any{}
		if err := mergeText(merged, read("/usr/share/k0s/cri.toml")); err != nil {
			return err
		}
		for _, drop := range drops {
			if text := read(drop); strings.Contains(text, "io.containerd.grpc.v1.cri") {
				if err := mergeText(merged, text); err != nil {
					return err
				}
			}
		}
		text, err := toml.Marshal(merged)
		if err != nil {
			return err
		}
		if err := os.WriteFile("/run/k0s/containerd-cri.toml", text, 0o644); err != nil {
			return err
		}
	}
	socket := "/run/k0s/containerd.sock"
	return supervise(
		[]string{containerd, "--state=/run/k0s/containerd", "--address=" + socket, "--config=/etc/k0s/containerd.toml"},
		kubelet(socket),
	)
}
