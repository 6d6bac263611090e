package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Policy is what the shim needs of the administrator's policy. The keys, their defaults and their meaning are those of
// installer/flox_node/state/policy.py; what the shim does not know is the Python side's.
type Policy struct {
	InnerRuntime string               `json:"inner_runtime"`
	FloxHub      FloxHub              `json:"floxhub"`
	Pods         Pods                 `json:"pods"`
	Realise      Realise              `json:"realise"`
	Nix          Nix                  `json:"nix"`
	Namespaces   map[string]Namespace `json:"namespaces"`
	KubeletRoot  string               `json:"kubelet_root"`
}

// Nix says where packages come from, for containers in which some can be installed.
type Nix struct {
	Substituters      []string `json:"substituters"`
	ExtraSubstituters []string `json:"extra_substituters"`
	TrustedKeys       []string `json:"trusted_public_keys"`
	ExtraTrustedKeys  []string `json:"extra_trusted_public_keys"`
}

// FloxHub says which hub's environments pods run.
type FloxHub struct {
	URL    string `json:"url"`
	GitURL string `json:"git_url"`
	APIURL string `json:"api_url"`
}

// Pods says what pods may ask for, and what their containers get.
type Pods struct {
	Owners             []string `json:"owners"`              // patterns
	Modes              []string `json:"modes"`               // run, dev
	NixMutable         bool     `json:"nix_mutable"`         // whether flox.dev/nix-mutable may be said
	WithoutEnvironment string   `json:"without_environment"` // refuse or plain
	SkipContainers     []string `json:"skip_containers"`     // patterns
	View               string   `json:"view"`                // closure or store
	Userland           string   `json:"userland"`            // on or off
	CacheFolder        string   `json:"cache_folder"`        // disk or memory
	CacheMiB           float64  `json:"cache_mib"`
}

// Realise says how long a sandbox waits, and how long an answer of the hub is good for; in seconds.
type Realise struct {
	WaitS      float64  `json:"wait_s"`
	FormerWait *float64 `json:"timeout_s"` // its name in older policies
	FreshnessS float64  `json:"freshness_s"`
}

// Namespace is what pods of some namespaces may, instead of what Pods says; nil: as there.
type Namespace struct {
	Owners             []string `json:"owners"`
	Modes              []string `json:"modes"`
	NixMutable         *bool    `json:"nix_mutable"`
	WithoutEnvironment *string  `json:"without_environment"`
}

const (
	shortestWait = time.Second
	// The kubelet gives up on a sandbox after four minutes; an answer after that reaches nobody.
	longestWait      = 230 * time.Second
	longestFreshness = time.Hour
)

// DefaultPolicy is the policy of a node on which nobody wrote one.
func DefaultPolicy() Policy {
	return Policy{
		Pods: Pods{
			Owners: []string{"*"}, Modes: []string{"run", "dev"},
			NixMutable:         true,
			WithoutEnvironment: "refuse",
			View:               "closure",
			Userland:           "on",
			CacheFolder:        "disk",
			CacheMiB:           64,
		},
		Nix: Nix{
			Substituters: []string{"https://cache.nixos.org", "https://cache.flox.dev"},
			TrustedKeys: []string{
				"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
				"flox-cache-public-1:7F4OyH7ZCnFhcze3fJdfyXYLQw/aV7GEed86nQ7IsOs=",
				"floxhub-1:0QOAlcobcEvq1mqEf4qAYCaWnTTOXpyoRv/PmqfSixM=",
			},
		},
		Realise: Realise{WaitS: 90, FreshnessS: 10},
	}
}

// LoadPolicy reads the policy. No file is the default policy; a damaged one is the default policy and an error.
func LoadPolicy() (Policy, error) {
	data, err := Read(Path(policyFile), maxPolicySize)
	if os.IsNotExist(err) {
		return DefaultPolicy(), nil
	}
	if err != nil {
		return DefaultPolicy(), err
	}
	policy := DefaultPolicy()
	if err = json.Unmarshal(data, &policy); err == nil {
		err = policy.check()
	}
	if err != nil {
		return DefaultPolicy(), fmt.Errorf("%s is damaged (%w): write it again with `flox-node policy apply`", policyFile, err)
	}
	return policy, nil
}

// check refuses words that this shim does not know: a policy that is not understood must not be taken for another one.
func (p *Policy) check() error {
	if p.Realise.FormerWait != nil {
		p.Realise.WaitS = *p.Realise.FormerWait
	}
	rules := []Pods{p.Pods}
	for pattern := range p.Namespaces {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("the pattern %q is malformed", pattern)
		}
		rules = append(rules, p.with(p.Namespaces[pattern]))
	}
	for _, of := range rules {
		for _, pattern := range slices.Concat(of.Owners, of.SkipContainers) {
			if _, err := path.Match(pattern, ""); err != nil {
				return fmt.Errorf("the pattern %q is malformed", pattern)
			}
		}
		for _, word := range []struct {
			key, value string
			known      []string
		}{
			{"without_environment", of.WithoutEnvironment, []string{"refuse", "plain"}},
			{"view", of.View, []string{"closure", "store"}},
			{"userland", of.Userland, []string{"on", "off"}},
			{"cache_folder", of.CacheFolder, []string{"disk", "memory"}},
		} {
			if !slices.Contains(word.known, word.value) {
				return fmt.Errorf("pods.%s is %q", word.key, word.value)
			}
		}
	}
	return nil
}

// InNamespace gives what pods of a Kubernetes namespace may. The most exact pattern counts: the name itself, else the
// longest.
func (p Policy) InNamespace(name string) Pods {
	best := ""
	for pattern := range p.Namespaces {
		if !Matches(pattern, name) || best == name {
			continue
		}
		if pattern == name || len(pattern) > len(best) || len(pattern) == len(best) && pattern > best {
			best = pattern
		}
	}
	return p.with(p.Namespaces[best])
}

func (p Policy) with(of Namespace) Pods {
	pods := p.Pods
	if of.Owners != nil {
		pods.Owners = of.Owners
	}
	if of.Modes != nil {
		pods.Modes = of.Modes
	}
	if of.NixMutable != nil {
		pods.NixMutable = *of.NixMutable
	}
	if of.WithoutEnvironment != nil {
		pods.WithoutEnvironment = *of.WithoutEnvironment
	}
	return pods
}

// AllowsOwner says whether pods may run environments of this owner.
func (p Pods) AllowsOwner(owner string) bool { return matchesAny(p.Owners, owner) }

// AllowsMode says whether flox.dev/activate-mode may have this value.
func (p Pods) AllowsMode(mode string) bool { return slices.Contains(p.Modes, mode) }

// Skips says whether a container of this name never gets the environment.
func (p Pods) Skips(container string) bool { return matchesAny(p.SkipContainers, container) }

// Matches says whether a name fits a pattern of * and ?. Names hold no slash.
func Matches(pattern, name string) bool {
	matched, err := path.Match(pattern, name)
	return err == nil && matched
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return Matches(pattern, name) })
}

// GitURL is where the hub's repositories are.
func (p Policy) GitURL() string {
	if p.FloxHub.GitURL != "" {
		return strings.TrimRight(p.FloxHub.GitURL, "/")
	}
	return apiOf(p.hubURL()) + "/git"
}

// HubVariables tell a Flox CLI of the hub: with only another git address that host is the hub, so that no token of a pod
// goes to flox.dev. They are those of the Python side (installer/flox_node/environments/flox_cli.py).
func (p Policy) HubVariables() []string {
	hub := p.hubURL()
	if git := strings.TrimRight(p.FloxHub.GitURL, "/"); p.FloxHub.URL == "" && git != "" && git != "https://api.flox.dev/git" {
		hub = strings.TrimSuffix(git, "/git")
	}
	api := p.FloxHub.APIURL
	if api == "" {
		api = apiOf(hub)
	}
	variables := []string{"FLOX_FLOXHUB_URL=" + hub, "FLOX_CATALOG_URL=" + api}
	if git := p.GitURL(); git != apiOf(hub)+"/git" {
		variables = append(variables, "_FLOX_FLOXHUB_GIT_URL="+git)
	}
	return variables
}

func (p Policy) hubURL() string {
	if p.FloxHub.URL == "" {
		return "https://hub.flox.dev"
	}
	return strings.TrimRight(p.FloxHub.URL, "/")
}

// apiOf gives the address of a hub's API: flox.dev's own hubs answer at api.<the rest>, any other one does so itself.
func apiOf(hub string) string {
	scheme, host, _ := strings.Cut(hub, "://")
	if rest, found := strings.CutPrefix(host, "hub."); found && (rest == "flox.dev" || strings.HasSuffix(rest, ".flox.dev")) {
		return scheme + "://api." + rest
	}
	return hub
}

// Deadline is how long a sandbox waits for its environment.
func (p Policy) Deadline() time.Duration {
	return min(max(seconds(p.Realise.WaitS, longestWait), shortestWait), longestWait)
}

// Freshness is how long the hub's answer to a token is good for the same token.
func (p Policy) Freshness() time.Duration { return seconds(p.Realise.FreshnessS, longestFreshness) }

func seconds(value float64, longest time.Duration) time.Duration {
	switch {
	case value <= 0:
		return 0
	case value > longest.Seconds():
		return longest
	}
	return time.Duration(value * float64(time.Second))
}
