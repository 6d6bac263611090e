package realise

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
	"flox.dev/flox-node/shim/internal/records"
)

const store = "/nix/store/bh6w6asdcbsvckn8a9xragcvxqc2gbjm-environment-run"

var key = []byte("0123456789abcdef0123456789abcdef")

func request() records.Request {
	return records.NewRequest(
		pod.Wishes{Reference: pod.Reference{Environment: "demo/hello"}, Mode: "run"},
		pod.Pod{Namespace: "team-a", Name: "web", UID: "uid-1", SandboxID: "sandbox"},
	)
}

// granted makes a node on which the hub granted demo/hello to the token at a time.
func granted(t *testing.T, token string, at time.Time) {
	t.Helper()
	node.SetPrefix(t.TempDir())
	t.Cleanup(func() { node.SetPrefix("") })
	write(t, node.GrantKey(), string(key))
	grant := records.Grant{SchemaVersion: 1, GrantedAt: float64(at.UnixMicro()) / 1e6, Resolution: records.Resolution{
		Environment: "demo/hello", Generation: 3, Commit: "e726283e8a262b07c61fff316fb2f18779c5f34e", Mode: "run",
		System: system(), StorePath: store,
	}}
	data, err := json.Marshal(grant)
	if err != nil {
		t.Fatal(err)
	}
	write(t, node.GrantFile(grantName(key, node.DefaultPolicy().GitURL(), system(), request(), token)), string(data))
	if err := os.MkdirAll(node.Path(store), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := node.Symlink(store, node.EnvironmentRoot("bh6w6asdcbsvckn8a9xragcvxqc2gbjm")); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// volume gives the pod a token as the kubelet does, through two links.
func volume(t *testing.T, kind, content string) {
	t.Helper()
	folder := filepath.Join(node.Path("/var/lib/kubelet/pods/uid-1/volumes"), kind)
	write(t, filepath.Join(folder, "..1/floxhub-token"), content)
	for link, target := range map[string]string{"..data": "..1", "floxhub-token": "..data/floxhub-token"} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
}

func isFresh(policy node.Policy) bool {
	resolution, found := fresh(request(), policy)
	return found && resolution.StorePath == store
}

func TestAGrantOfThisTokenIsGoodForTheFreshness(t *testing.T) {
	policy := node.DefaultPolicy()
	for name, wanted := range map[time.Duration]bool{
		-time.Second: true, -9 * time.Second: true, -11 * time.Second: false, time.Minute: false,
	} {
		granted(t, "", time.Now().Add(name))
		if isFresh(policy) != wanted {
			t.Errorf("granted at %s: %v", name, !wanted)
		}
	}
	granted(t, "", time.Now())
	policy.Realise.FreshnessS = 0
	if isFresh(policy) {
		t.Error("no freshness, no answer")
	}
}

func TestAGrantIsGoodForItsOwnTokenAlone(t *testing.T) {
	for _, kind := range []string{"kubernetes.io~secret/a", "kubernetes.io~projected/b", "kubernetes.io~csi/c/mount"} {
		granted(t, "flox_right", time.Now())
		if isFresh(node.DefaultPolicy()) {
			t.Fatal("the pod has no token")
		}
		volume(t, kind, "flox_right\n")
		if !isFresh(node.DefaultPolicy()) {
			t.Errorf("%s: the pod's token was granted it", kind)
		}
	}
	volume(t, "kubernetes.io~secret/other", "flox_wrong\n")
	if isFresh(node.DefaultPolicy()) {
		t.Error("two different tokens")
	}
	granted(t, "", time.Now())
	volume(t, "kubernetes.io~secret/a", "flox_wrong")
	if isFresh(node.DefaultPolicy()) {
		t.Error("granted to nobody in particular is not granted to this token")
	}
}

func TestATokenOutsideItsVolumeIsNone(t *testing.T) {
	granted(t, "", time.Now())
	write(t, node.Path("/etc/floxhub-token"), "flox_host")
	folder := node.Path("/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~csi/c/mount")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(node.Path("/etc/floxhub-token"), filepath.Join(folder, tokenFile)); err != nil {
		t.Fatal(err)
	}
	if !isFresh(node.DefaultPolicy()) {
		t.Error("the pod has no token")
	}
}

func TestWhatIsNotAllowedOrNotThereIsNotFresh(t *testing.T) {
	granted(t, "", time.Now())
	policy := node.DefaultPolicy()
	policy.Namespaces = map[string]node.Namespace{"team-*": {Owners: []string{"team"}}}
	if isFresh(policy) {
		t.Error("the policy does not allow the owner")
	}
	policy = node.DefaultPolicy()
	policy.FloxHub.URL = "https://hub.example.com"
	if isFresh(policy) {
		t.Error("another hub granted it")
	}
	if err := os.Remove(node.EnvironmentRoot("bh6w6asdcbsvckn8a9xragcvxqc2gbjm")); err != nil {
		t.Fatal(err)
	}
	if isFresh(node.DefaultPolicy()) {
		t.Error("a garbage collection may take it")
	}
}

// The Python side's test has the same name (tests/unit/environments/test_grants.py).
func TestBothSidesGiveAGrantTheSameName(t *testing.T) {
	asked := records.NewRequest(
		pod.Wishes{Reference: pod.Reference{Environment: "demo/hello", Generation: 3}, Mode: "dev"}, pod.Pod{},
	)
	name := grantName(key, "https://api.flox.dev/git", "x86_64-linux", asked, "flox_right")
	if name != "16bc5a542f9ed92b7394c16620b2f9c06379b1892ece48d59a3ca489b28d1c89" {
		t.Error(name)
	}
}

// Whatever links the volumes of a pod hold: nothing outside of them is taken for its token.
func FuzzHostileVolumes(f *testing.F) {
	f.Add("..data/floxhub-token", "..1", "/etc", "c")
	f.Add("../../../../../../../../etc/floxhub-token", "..", "../../secret", "..")
	f.Add("/etc/floxhub-token", "floxhub-token", ".", "/")
	f.Add("0", "0", "/etc", "a volume that is a link itself")
	f.Fuzz(func(t *testing.T, token, data, mount, name string) {
		node.SetPrefix(t.TempDir())
		t.Cleanup(func() { node.SetPrefix("") })
		const outside = "flox_of_the_node"
		write(t, node.Path("/etc/floxhub-token"), outside)
		volumes := node.Path("/var/lib/kubelet/pods/uid-1/volumes")
		write(t, filepath.Join(volumes, "kubernetes.io~secret/a/..1/floxhub-token"), "flox_of_the_pod")
		for link, target := range map[string]string{
			"kubernetes.io~secret/a/floxhub-token": token, "kubernetes.io~secret/a/..data": data,
			"kubernetes.io~csi/c/mount": mount, "kubernetes.io~projected/" + name: mount, "kubernetes.io~csi/c/x": data,
		} {
			if !strings.HasPrefix(filepath.Join(volumes, link), volumes+"/") || strings.Contains(link, "\x00") {
				continue
			}
			target = strings.ReplaceAll(target, "/etc", node.Path("/etc"))
			_ = os.MkdirAll(filepath.Dir(filepath.Join(volumes, link)), 0o755)
			_ = os.Symlink(target, filepath.Join(volumes, link))
		}
		found, _ := podToken("uid-1", node.DefaultPolicy())
		if found == outside {
			t.Errorf("token -> %q, ..data -> %q, mount -> %q, name %q", token, data, mount, name)
		}
	})
}
