package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
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
	config     = "/etc/containerd/config.toml"
	baseSpec   = "/etc/containerd/base-runtime-spec.json"
)

type nodeConfig struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Cluster    map[string]any `json:"cluster,omitempty"`
		Containerd struct {
			Config string `json:"config,omitempty"`
		} `json:"containerd,omitempty"`
		Kubelet struct {
			Flags  []string       `json:"flags,omitempty"`
			Config map[string]any `json:"config,omitempty"`
		} `json:"kubelet,omitempty"`
		FeatureGates map[string]bool `json:"featureGates,omitempty"`
	} `json:"spec"`
}

// nodeadm: `init` with the flags of nodeadm-config.service and nodeadm-run.service, `config check` and `config dump`.
//
// As the real one it refuses sources that are missing or cannot be decoded, text with a newer plugin id on containerd
// 1.x, and sources without a cluster's name; the second service saves the *merged* sources over the first one's cache.
func nodeadm(args []string) error {
	given, err := parse(args)
	if err != nil {
		return err
	}
	switch strings.Join(given.command, " ") {
	case "init":
		return initialise(given)
	case "config check":
		_, err = load(given.sources)
	case "config dump":
		var found nodeConfig
		if found, err = load(given.sources); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(found)
		}
	default:
		err = fmt.Errorf("unknown command %q", given.command)
	}
	return err
}

type arguments struct {
	command []string
	sources []string
	skipped []string
	cache   string
}

func parse(args []string) (arguments, error) {
	var given arguments
	for index := 0; index < len(args); index++ {
		if !strings.HasPrefix(args[index], "-") {
			given.command = append(given.command, args[index])
			continue
		}
		if index+1 == len(args) {
			return given, fmt.Errorf("%s needs a value", args[index])
		}
		flag, value := args[index], args[index+1]
		index++
		switch flag {
		case "-c", "--config-source":
			if value == "imds://user-data" {
				value = "file://" + userData
			}
			path, isFile := strings.CutPrefix(value, "file://")
			if !isFile {
				return given, fmt.Errorf("unknown scheme of %q", value)
			}
			given.sources = append(given.sources, path)
		case "-s", "--skip":
			given.skipped = append(given.skipped, value)
		case "--config-cache":
			given.cache = value
		default:
			return given, fmt.Errorf("unknown flag %q", flag)
		}
	}
	if len(given.sources) == 0 {
		given.sources = []string{userData}
	}
	return given, nil
}

// load merges all sources, later ones winning. A single containerd text stays as it is; merged ones are written anew.
func load(sources []string) (nodeConfig, error) {
	merged := nodeConfig{APIVersion: "node.eks.aws/v1alpha1", Kind: "NodeConfig"}
	merged.Spec.Cluster = map[string]any{}
	for _, source := range sources {
		files := []string{source}
		if info, err := os.Stat(source); err != nil {
			return merged, err
		} else if info.IsDir() {
			files = nil
			entries, err := os.ReadDir(source)
			if err != nil {
				return merged, err
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
			if err := merged.add(file); err != nil {
				return merged, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	if merged.Spec.Cluster["name"] == nil {
		return merged, errors.New("Name is missing in cluster configuration")
	}
	return merged, nil
}

func (into *nodeConfig) add(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var found nodeConfig
	if err := yaml.UnmarshalStrict(text, &found); err != nil {
		return err
	}
	if found.Kind != "NodeConfig" || !strings.HasPrefix(found.APIVersion, "node.eks.aws/") {
		return fmt.Errorf("no kind %q is registered for version %q", found.Kind, found.APIVersion)
	}
	for key, value := range found.Spec.Cluster {
		into.Spec.Cluster[key] = value
	}
	into.Spec.Kubelet.Flags = append(into.Spec.Kubelet.Flags, found.Spec.Kubelet.Flags...)
	for key, value := range found.Spec.Kubelet.Config {
		if into.Spec.Kubelet.Config == nil {
			into.Spec.Kubelet.Config = map[string]any{}
		}
		into.Spec.Kubelet.Config[key] = value
	}
	was, is := into.Spec.Containerd.Config, found.Spec.Containerd.Config
	if was == "" || is == "" {
		into.Spec.Containerd.Config = was + is
		return mergeText(map[string]any{}, is)
	}
	both := map[string]any{}
	if err := errors.Join(mergeText(both, was), mergeText(both, is)); err != nil {
		return err
	}
	written, err := toml.Marshal(both)
	into.Spec.Containerd.Config = string(written)
	return err
}

// initialise configures unless told to skip that, and then too if the sources no longer say what the cache does.
func initialise(given arguments) error {
	found, err := load(given.sources)
	if err != nil {
		return err
	}
	if slices.Contains(given.skipped, "config") {
		var cached nodeConfig
		text, err := os.ReadFile(given.cache)
		if err == nil && json.Unmarshal(text, &cached) == nil && reflect.DeepEqual(cached.Spec, found.Spec) {
			return nil
		}
	}
	if err := configure(found.Spec.Containerd.Config); err != nil || given.cache == "" {
		return err
	}
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(given.cache), 0o755); err != nil {
		return err
	}
	return os.WriteFile(given.cache, text, 0o600)
}

func configure(given string) error {
	spec, err := exec.Command("ctr", "oci", "spec").Output() // the original writes one with other limits
	if err != nil {
		return err
	}
	if err := os.WriteFile(baseSpec, spec, 0o644); err != nil {
		return err
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

func mergeText(into map[string]any, text string) error {
	from := map[string]any{}
	if err := toml.Unmarshal([]byte(text), &from); err != nil {
		return err
	}
	return mergo.Merge(&into, from, mergo.WithOverride)
}
