package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"dario.cat/mergo"
	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"
)

const (
	templateV2 = "/usr/share/nodeadm/config.template.toml"
	templateV3 = "/usr/share/nodeadm/config2.template.toml"
	userData   = "/usr/share/nodeadm/user-data.yaml"
	fragments  = "/etc/eks/nodeadm.d"
	config     = "/etc/containerd/config.toml"
)

type nodeConfig struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Cluster    map[string]any `json:"cluster"`
		Containerd struct {
			Config string `json:"config"`
		} `json:"containerd"`
	} `json:"spec"`
}

// nodeadm: `init --user-data` (nodeadm-config.service), `init` (nodeadm-run.service), `config check -c SOURCE...`.
func nodeadm(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "init":
		return initialise([]string{userData, fragments})
	case len(args) == 2 && args[0] == "init" && args[1] == "--user-data":
		return initialise([]string{userData})
	case len(args) > 2 && args[0] == "config" && args[1] == "check":
		return check(args[2:])
	}
	return fmt.Errorf("unknown arguments %q", args)
}

func check(args []string) error {
	var sources []string
	for index := 0; index+1 < len(args); index += 2 {
		if args[index] != "-c" && args[index] != "--config-source" {
			return fmt.Errorf("unknown flag %q", args[index])
		}
		source := args[index+1]
		if source == "imds://user-data" {
			source = "file://" + userData
		}
		sources = append(sources, strings.TrimPrefix(source, "file://"))
	}
	_, cluster, err := load(sources)
	if err == nil && len(cluster) == 0 {
		err = errors.New("Name is missing in cluster configuration")
	}
	return err
}

// load merges the containerd configurations of all sources, later ones winning.
func load(sources []string) (string, map[string]any, error) {
	merged := map[string]any{}
	cluster := map[string]any{}
	for _, source := range sources {
		files := []string{source}
		if info, err := os.Stat(source); err != nil {
			return "", nil, err
		} else if info.IsDir() {
			files = nil
			entries, err := os.ReadDir(source)
			if err != nil {
				return "", nil, err
			}
			for _, entry := range entries {
				switch strings.ToLower(filepath.Ext(entry.Name())) {
				case ".yaml", ".yml", ".json":
					files = append(files, filepath.Join(source, entry.Name()))
				}
			}
			sort.Strings(files)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return "", nil, err
			}
			var found nodeConfig
			if err := yaml.UnmarshalStrict(text, &found); err != nil {
				return "", nil, fmt.Errorf("%s: %w", file, err)
			}
			if found.Kind != "NodeConfig" || !strings.HasPrefix(found.APIVersion, "node.eks.aws/") {
				return "", nil, fmt.Errorf("%s: no kind %q is registered for version %q", file, found.Kind, found.APIVersion)
			}
			if err := mergeText(merged, found.Spec.Containerd.Config); err != nil {
				return "", nil, fmt.Errorf("%s: %w", file, err)
			}
			for key, value := range found.Spec.Cluster {
				cluster[key] = value
			}
		}
	}
	if len(merged) == 0 {
		return "", cluster, nil
	}
	text, err := toml.Marshal(merged)
	return string(text), cluster, err
}

func initialise(sources []string) error {
	given, _, err := load(sources)
	if err != nil {
		return err
	}
	if len(sources) == 1 {
		if err := cache(given); err != nil {
			return err
		}
	}
	release, err := major("containerd")
	if err != nil {
		return err
	}
	hasNewID := strings.Contains(given, "io.containerd.cri.v1.images") || strings.Contains(given, "io.containerd.cri.v1.runtime")
	if release == "1" && hasNewID {
		return errors.New("containerd 1.x does not know the plugin ids of version 3")
	}
	template, migrate := templateV3, false
	if release == "1" || (given != "" && !hasNewID) {
		template, migrate = templateV2, release != "1"
	}
	base, err := os.ReadFile(template)
	if err != nil {
		return err
	}
	document := map[string]any{}
	if err := mergeText(document, string(base)); err != nil {
		return err
	}
	if err := mergeText(document, given); err != nil {
		return err
	}
	text, err := toml.Marshal(document)
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return err
	}
	if !migrate {
		return nil
	}
	migrated, err := exec.Command("containerd", "config", "migrate").Output()
	if err != nil {
		return err
	}
	return os.WriteFile(config, migrated, 0o644)
}

// cache keeps what the user data say for nodeadm-run.service, which compares.
func cache(given string) error {
	spec := map[string]any{"containerd": map[string]any{"config": given}}
	text, err := json.Marshal(map[string]any{"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": spec})
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/run/eks/nodeadm", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/run/eks/nodeadm/config.json", text, 0o600)
}

func mergeText(into map[string]any, text string) error {
	from := map[string]any{}
	if err := toml.Unmarshal([]byte(text), &from); err != nil {
		return err
	}
	return mergo.Merge(&into, from, mergo.WithOverride)
}
