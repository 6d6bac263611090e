// kind's own code for what the tests ask of it without an engine. It is compiled inside kind's module, whose internal
// packages it needs (tests/bed/kind.py).
//
//	check load CLUSTER.yaml               what kind makes of a cluster file, with its defaults, as JSON
//	check patch CLUSTER.yaml CONFIG.toml  a node's configuration of containerd after the file's patches
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"sigs.k8s.io/kind/pkg/internal/apis/config/encoding"
	"sigs.k8s.io/kind/pkg/internal/patch"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(words []string) error {
	cluster, err := encoding.Load(words[1])
	if err != nil {
		return err
	}
	if err := cluster.Validate(); err != nil {
		return err
	}
	if words[0] == "load" {
		return json.NewEncoder(os.Stdout).Encode(cluster)
	}
	config, err := os.ReadFile(words[2])
	if err != nil {
		return err
	}
	patched, err := patch.ContainerdTOML(
		string(config), cluster.ContainerdConfigPatches, cluster.ContainerdConfigPatchesJSON6902)
	if err != nil {
		return err
	}
	fmt.Print(patched)
	return nil
}
