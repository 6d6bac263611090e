package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func policyOf(t *testing.T, content string) (Policy, error) {
	t.Helper()
	SetPrefix(t.TempDir())
	t.Cleanup(func() { SetPrefix("") })
	if content != "" {
		if err := WriteFile(Path(policyFile), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return LoadPolicy()
}

func TestAMissingPolicyOrKeyIsTheDefault(t *testing.T) {
	for _, content := range []string{"", "{}", `{"inner_runtime":null,"realise":{},"pods":{},"namespaces":{},"later":1}`} {
		policy, err := policyOf(t, content)
		policy.Namespaces = nil
		if err != nil || !reflect.DeepEqual(policy, DefaultPolicy()) || policy.Deadline() != 90*time.Second {
			t.Errorf("%s: %+v, %v", content, policy, err)
		}
	}
}

func TestADamagedPolicyIsTheDefaultAndAnError(t *testing.T) {
	for _, content := range []string{
		"{", "[]", `{"inner_runtime":3}`, `{"realise":{"wait_s":"x"}}`, `{"pods":{"without_environment":"run"}}`,
		`{"pods":{"view":"all"}}`, `{"pods":{"owners":["["]}}`, `{"pods":{"userland":true}}`,
		`{"namespaces":{"[":{}}}`, `{"namespaces":{"a":{"without_environment":"x"}}}`,
	} {
		policy, err := policyOf(t, content)
		if err == nil || !reflect.DeepEqual(policy, DefaultPolicy()) {
			t.Errorf("%s: %+v, %v", content, policy, err)
		}
	}
}

func TestAWaitStaysBelowTheKubelets(t *testing.T) {
	for content, wanted := range map[string]time.Duration{
		`{"realise":{"wait_s":1.5}}`: 1500 * time.Millisecond, `{"realise":{"wait_s":-1}}`: shortestWait,
		`{"realise":{"wait_s":1e300}}`: longestWait, `{"realise":{"wait_s":1000}}`: longestWait,
		`{"realise":{"timeout_s":20}}`: 20 * time.Second,
	} {
		if policy, err := policyOf(t, content); err != nil || policy.Deadline() != wanted {
			t.Errorf("%s: %v, %v", content, policy.Deadline(), err)
		}
	}
}

func TestANamespacesRulesAreThoseOfTheMostExactPattern(t *testing.T) {
	policy, err := policyOf(t, `{"pods":{"owners":["flox"],"skip_containers":["istio-*"]},"namespaces":{
		"team-*":{"owners":["team"],"nix_mutable":false},"team-a":{"modes":["run"]},"*":{"without_environment":"plain"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	b, a, other := policy.InNamespace("team-b"), policy.InNamespace("team-a"), policy.InNamespace("x")
	if !b.AllowsOwner("team") || b.AllowsOwner("flox") || b.NixMutable || !b.AllowsMode("dev") || !b.Skips("istio-proxy") {
		t.Errorf("%+v", b)
	}
	if a.AllowsOwner("team") || !a.AllowsOwner("flox") || !a.NixMutable || a.AllowsMode("dev") || a.Skips("istio") {
		t.Errorf("%+v", a)
	}
	if other.WithoutEnvironment != "plain" || b.WithoutEnvironment != "refuse" {
		t.Errorf("%+v, %+v", other, b)
	}
}

func TestGitFollowsFromTheHub(t *testing.T) {
	for content, wanted := range map[string]string{
		"": "https://api.flox.dev/git",
		`{"floxhub":{"url":"https://hub.x.flox.dev"}}`:                                   "https://api.x.flox.dev/git",
		`{"floxhub":{"url":"http://hub.example.com:8080/"}}`:                             "http://hub.example.com:8080/git",
		`{"floxhub":{"git_url":"https://git.example.com/git/"}}`:                         "https://git.example.com/git",
		`{"floxhub":{"url":"https://a.com","git_url":"https://b.com/g","api_url":null}}`: "https://b.com/g",
	} {
		if policy, err := policyOf(t, content); err != nil || policy.GitURL() != wanted {
			t.Errorf("%s: %s, %v", content, policy.GitURL(), err)
		}
	}
}

func TestAFloxCLIIsToldOfOneHub(t *testing.T) {
	for content, wanted := range map[string]string{
		"": "FLOX_FLOXHUB_URL=https://hub.flox.dev FLOX_CATALOG_URL=https://api.flox.dev",
		`{"floxhub":{"url":"http://hub.example.com:8080/"}}`: "FLOX_FLOXHUB_URL=http://hub.example.com:8080 " +
			"FLOX_CATALOG_URL=http://hub.example.com:8080",
		`{"floxhub":{"git_url":"https://git.example.com/git"}}`: "FLOX_FLOXHUB_URL=https://git.example.com " +
			"FLOX_CATALOG_URL=https://git.example.com",
		`{"floxhub":{"url":"https://a.com","git_url":"https://b.com/g","api_url":"https://c.com"}}`: "FLOX_FLOXHUB_URL=https://a.com " +
			"FLOX_CATALOG_URL=https://c.com _FLOX_FLOXHUB_GIT_URL=https://b.com/g",
		`{"floxhub":{"git_url":"https://b.com/g"}}`: "FLOX_FLOXHUB_URL=https://b.com/g FLOX_CATALOG_URL=https://b.com/g " +
			"_FLOX_FLOXHUB_GIT_URL=https://b.com/g",
	} {
		if policy, err := policyOf(t, content); err != nil || strings.Join(policy.HubVariables(), " ") != wanted {
			t.Errorf("%s: %s, %v", content, policy.HubVariables(), err)
		}
	}
}

func TestFreshnessMayBeNone(t *testing.T) {
	for content, wanted := range map[string]time.Duration{
		"": 10 * time.Second, `{"realise":{"freshness_s":0}}`: 0, `{"realise":{"freshness_s":1e9}}`: time.Hour,
	} {
		if policy, err := policyOf(t, content); err != nil || policy.Freshness() != wanted {
			t.Errorf("%s: %v, %v", content, policy.Freshness(), err)
		}
	}
}

func TestARootIsReplacedAsAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gcroots/flox-node/pod-x")
	for _, target := range []string{"/nix/store/a", "/nix/store/b"} {
		if err := Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.Readlink(path); got != target {
			t.Fatal(got)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Fatalf("%v", entries)
	}
}

// The Python side reads the same cases (tests/unit/state/test_policy.py).
func TestAPolicyMeansWhatItMeansToThePythonSide(t *testing.T) {
	data, err := os.ReadFile("../../../tests/unit/state/policies.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		What, Namespace string
		File            json.RawMessage
		Pods            map[string]any
		Means           map[string]any
		Hub             map[string]string
		GitURL          string `json:"git_url"`
	}
	if err = json.Unmarshal(data, &cases); err != nil || len(cases) < 5 {
		t.Fatal(err, len(cases))
	}
	for _, each := range cases {
		policy, err := policyOf(t, string(each.File))
		if err != nil {
			t.Errorf("%s: %v", each.What, err)
		}
		holds(t, each.What, policy.InNamespace(each.Namespace), each.Pods)
		holds(t, each.What, policy.Nix, each.Means["nix"])
		policy.Realise.FormerWait = nil
		holds(t, each.What, policy.Realise, each.Means["realise"])
		hub := map[string]string{}
		for _, variable := range policy.HubVariables() {
			name, value, _ := strings.Cut(variable, "=")
			hub[name] = value
		}
		if policy.GitURL() != each.GitURL || !reflect.DeepEqual(hub, each.Hub) {
			t.Errorf("%s: %s, %v", each.What, policy.GitURL(), hub)
		}
	}
}

// holds compares what the shim knows of a table with what the table means.
func holds(t *testing.T, what string, ours any, wanted any) {
	t.Helper()
	data, _ := json.Marshal(ours)
	var known map[string]any
	if err := json.Unmarshal(data, &known); err != nil {
		t.Fatal(err)
	}
	for key, value := range known {
		of, found := wanted.(map[string]any)[key]
		if list, isList := of.([]any); isList && len(list) == 0 && value == nil {
			continue
		}
		if value != nil && !found || !reflect.DeepEqual(value, of) {
			t.Errorf("%s: %s is %v, not %v", what, key, value, of)
		}
	}
}

// Whatever somebody wrote into the policy's file: it is one, or the default and an error.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"inner_runtime":"/usr/bin/runc","pods":{"owners":["a*"],"cache_mib":1e300},"realise":{"wait_s":-1}}`))
	f.Add([]byte(`{"namespaces":{"a":{"nix_mutable":null,"owners":[null]}},"floxhub":{"url":"://hub."}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		SetPrefix(t.TempDir())
		t.Cleanup(func() { SetPrefix("") })
		if err := WriteFile(Path(policyFile), content, 0o644); err != nil {
			t.Fatal(err)
		}
		policy, err := LoadPolicy()
		if err != nil && !reflect.DeepEqual(policy, DefaultPolicy()) {
			t.Errorf("%+v", policy)
		}
		rules := policy.InNamespace("a")
		_, _, _ = rules.AllowsOwner("x"), rules.Skips("x"), policy.HubVariables()
		if wait := policy.Deadline(); wait < shortestWait || wait > longestWait {
			t.Error(wait)
		}
		if fresh := policy.Freshness(); fresh < 0 || fresh > longestFreshness {
			t.Error(fresh)
		}
	})
}
