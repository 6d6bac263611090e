package node

import (
	"errors"
	"os"
	"path/filepath"
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
	for _, content := range []string{"", "{}", `{"inner_runtime":null,"realise":{},"later":1}`} {
		policy, err := policyOf(t, content)
		if err != nil || policy.InnerRuntime != "" || policy.Deadline() != 90*time.Second {
			t.Errorf("%s: %+v, %v", content, policy, err)
		}
	}
}

func TestADamagedPolicyIsTheDefaultAndAnError(t *testing.T) {
	for _, content := range []string{"{", "[]", `{"inner_runtime":3}`, `{"realise":{"timeout_s":"x"}}`} {
		policy, err := policyOf(t, content)
		if err == nil || policy != (Policy{}) {
			t.Errorf("%s: %+v, %v", content, policy, err)
		}
	}
}

func TestADeadlineStaysBelowTheKubelets(t *testing.T) {
	for content, wanted := range map[string]time.Duration{
		`{"realise":{"timeout_s":0.5}}`: 500 * time.Millisecond, `{"realise":{"timeout_s":-1}}`: defaultDeadline,
		`{"realise":{"timeout_s":1e300}}`: longestDeadline, `{"realise":{"timeout_s":1000}}`: longestDeadline,
	} {
		if policy, err := policyOf(t, content); err != nil || policy.Deadline() != wanted {
			t.Errorf("%s: %v, %v", content, policy.Deadline(), err)
		}
	}
}

func TestNoPathThatLeadsBackToUsIsAnInnerRuntime(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	older := filepath.Join(dir, "payloads/older/bin/flox-runtime")
	if err := WriteFile(older, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"self": self, "older": older} {
		one, two := filepath.Join(dir, name+"-1"), filepath.Join(dir, name+"-2")
		if err := errors.Join(os.Symlink(target, one), os.Symlink(one, two)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{target, one, two} {
			if err := notOurselves(path); !errors.Is(err, errOurselves) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if err := notOurselves("/bin/true"); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"runc", "", "/nonesuch"} {
		if err := notOurselves(path); err == nil {
			t.Errorf("%q is no inner runtime", path)
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
