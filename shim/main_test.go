package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/node"
)

const (
	beTheShim = "FLOX_TEST_SHIM_BELOW"
	coverage  = "FLOX_TEST_COVERAGE" // where `make coverage` wants what the shim's processes took
)

// The test binary is the shim itself when it is started as that, with its paths below a folder.
func TestMain(m *testing.M) {
	if prefix := os.Getenv(beTheShim); prefix != "" {
		node.SetPrefix(prefix)
		main()
	}
	os.Exit(m.Run())
}

// runtimeScript is an OCI runtime as far as it says which containers it knows: by STATE in its folder, as runc and crun
// do. It writes its name and its arguments to a file, and refuses to delete what its folder calls running.
const runtimeScript = `#!/bin/sh
echo "NAME $*" >>DIR/calls
while [ $# -gt 0 ]; do
	case $1 in
	--root) root=$2; shift 2 ;;
	--log | --log-format) shift 2 ;;
	--version) echo "crun version VERSION"; exit 0 ;;
	*) break ;;
	esac
done
command=$1; shift
while [ $# -gt 0 ]; do
	case $1 in
	--bundle) bundle=$2; shift 2 ;;
	--process | --format) shift 2 ;;
	--force) force=1; shift ;;
	-*) shift ;;
	*) break ;;
	esac
done
folder=$root/$1
case $command in
create)
	[ ! -e DIR/create-fails ] || exit 1
	mkdir -p "$folder"
	case STATE in
	state.json) echo '{"config":{"labels":["x=y","bundle='"$bundle"'"]}}' >"$folder/STATE" ;;
	*) echo '{"bundle":"'"$bundle"'"}' >"$folder/STATE" ;;
	esac ;;
features) ;;
delete)
	[ -z "$force" ] || [ -e "$folder" ] || exit 0
	[ -e "$folder/STATE" ] || exit 1
	[ -n "$force" ] || [ ! -e "$folder/running" ] || exit 1
	rm -r "$folder" ;;
*) [ -e "$folder/STATE" ] || { echo "container does not exist" >&2; exit 1; } ;;
esac
`

const resolution = `{"environment": "demo/hello", "generation": 3, "commit": "0123456789abcdef0123456789abcdef01234567",
"mode": "run", "system": "x86_64-linux", "store_path": "/nix/store/0c1dfghijk2lmnpqrsvwxyz34567890a-environment-hello-run"}`

// fixture is a node: two runtimes, a store with one environment, and a Python side that always answers.
type fixture struct {
	*testing.T
	dir, runc, crun string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, dir: t.TempDir()}
	f.runc, f.crun = f.runtime("runc", "state.json", "x"), f.runtime("crun", "status", "1.21")
	const environment = "/nix/store/0c1dfghijk2lmnpqrsvwxyz34567890a-environment-hello-run/"
	const bash = "/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-bash/bin/bash"
	f.write(environment+"requisites.txt", path.Dir(path.Dir(bash)), 0o444)
	f.write(environment+"activate", "#! "+bash+" -e\n", 0o755)
	f.write(environment+"libexec/flox-activations", "\x7fELF", 0o755)
	f.write(environment+"bin/hello", "\x7fELF", 0o755)
	f.write(bash, "\x7fELF", 0o755)
	f.write("/opt/flox-node/bin/flox-node-realise",
		"#!/bin/sh\ncat >/dev/null; echo '{\"schema_version\":1,\"ok\":true,\"resolution\":"+
			strings.ReplaceAll(resolution, "\n", "")+"}'\n", 0o755)
	f.policy(f.runc)
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) write(name, content string, mode os.FileMode) string {
	f.Helper()
	if err := os.MkdirAll(filepath.Dir(f.path(name)), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(f.path(name), []byte(content), mode); err != nil {
		f.Fatal(err)
	}
	return f.path(name)
}

func (f *fixture) runtime(name, state, version string) string {
	f.Helper()
	text := strings.NewReplacer("NAME", name, "STATE", state, "DIR", f.dir, "VERSION", version).Replace(runtimeScript)
	return f.write("own/bin/"+name, text, 0o755)
}

func (f *fixture) policy(runtime string) {
	f.Helper()
	f.write("/etc/flox-node/policy.json", fmt.Sprintf(`{"schema_version":1,"inner_runtime":%q}`, runtime), 0o644)
}

// call runs the shim; the error is the last one of its log.
func (f *fixture) call(arguments ...string) (status int, failure string) {
	f.Helper()
	self, err := os.Executable()
	if err != nil {
		f.Fatal(err)
	}
	command := exec.Command(self, arguments...)
	command.Env = []string{beTheShim + "=" + f.dir, "PATH=/usr/bin:/bin", "GOCOVERDIR=" + os.Getenv(coverage)}
	output, _ := command.CombinedOutput()
	return command.ProcessState.ExitCode(), string(output)
}

// of runs a command for a container as containerd does, with the log in its bundle.
func (f *fixture) of(id string, command ...string) (status int, failure string) {
	f.Helper()
	log := f.path("bundles/" + id + "/log.json")
	return f.call(append([]string{"--root", f.path("state"), "--log", log, "--log-format", "json"}, command...)...)
}

func (f *fixture) ok(id string, command ...string) {
	f.Helper()
	if status, failure := f.of(id, command...); status != 0 {
		f.Fatalf("%q: %d, %s", command, status, failure)
	}
}

func (f *fixture) bundle(kind, sandbox, id string, edit func(config map[string]any)) {
	f.Helper()
	config := map[string]any{
		"root":    map[string]any{"path": "rootfs"},
		"process": map[string]any{"args": []string{"hello"}, "env": []string{"PATH=/bin"}},
		"annotations": map[string]string{
			"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.container-name": "main",
			"io.kubernetes.cri.sandbox-id": sandbox, "io.kubernetes.cri.sandbox-name": "web",
			"io.kubernetes.cri.sandbox-namespace": "default", "flox.dev/environment": "demo/hello",
		},
	}
	if edit != nil {
		edit(config)
	}
	data, err := json.Marshal(config)
	if err != nil {
		f.Fatal(err)
	}
	f.write("bundles/"+id+"/config.json", string(data), 0o644)
	if err := os.MkdirAll(f.path("bundles/"+id+"/rootfs"), 0o755); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) create(kind, sandbox, id string) (status int, failure string) {
	f.Helper()
	f.bundle(kind, sandbox, id, nil)
	return f.of(id, "create", "--bundle", f.path("bundles/"+id), id)
}

// pod makes a sandbox and a container in it.
func (f *fixture) pod(sandbox, container string) {
	f.Helper()
	for _, made := range [][2]string{{"sandbox", sandbox}, {"container", container}} {
		if status, failure := f.create(made[0], sandbox, made[1]); status != 0 {
			f.Fatalf("%s: %d, %s", made[1], status, failure)
		}
	}
}

func (f *fixture) calls() []string {
	data, _ := os.ReadFile(f.path("calls"))
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func (f *fixture) records() string {
	var found []string
	for _, pattern := range []string{
		"run/flox-node/pods/*", "run/flox-node/containers/*", "nix/var/nix/gcroots/flox-node/*",
	} {
		paths, _ := filepath.Glob(f.path(pattern))
		for _, path := range paths {
			found = append(found, strings.TrimSuffix(filepath.Base(path), ".json"))
		}
	}
	return strings.Join(found, " ")
}

func TestEveryCallOfAContainerGoesToTheRuntimeThatCreatedIt(t *testing.T) {
	f := newFixture(t)
	f.pod("s1", "c1")
	for name, change := range map[string]func(){
		"another runtime":   func() { f.policy(f.crun) },
		"a missing one":     func() { f.policy("/nonesuch") },
		"a damaged policy":  func() { f.write("etc/flox-node/policy.json", "{", 0o644) },
		"no policy":         func() { _ = os.Remove(f.path("etc/flox-node/policy.json")) },
		"no policy, a crun": func() { _ = os.Symlink(f.crun, f.path("usr/bin/runc")) },
	} {
		if err := os.MkdirAll(f.path("usr/bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		change()
		for _, command := range [][]string{
			{"start", "c1"}, {"state", "c1"}, {"exec", "--process", f.path("none"), "--detach", "c1"}, {"kill", "c1", "15"},
			{"kill", "--all", "c1", "9"}, {"ps", "--format", "json", "c1"}, {"update", "--resources=-", "c1"},
			{"pause", "c1"}, {"resume", "c1"},
		} {
			f.ok("c1", command...)
			if last := f.calls()[len(f.calls())-1]; !strings.HasPrefix(last, "runc ") {
				t.Errorf("%s: %q went to %s", name, command, last)
			}
		}
		// By hand, without the log that lies in the bundle.
		if status, failure := f.call("--root", f.path("state"), "kill", "c1", "9"); status != 0 {
			t.Errorf("%s: by hand: %d, %s", name, status, failure)
		}
	}
	f.policy(f.crun)
	f.pod("s2", "c2")
	if last := f.calls()[len(f.calls())-1]; !strings.HasPrefix(last, "crun ") {
		t.Errorf("a new container is created by %s", last)
	}
	for _, id := range []string{"c1", "s1", "c2", "s2"} {
		f.ok(id, "delete", id)
	}
	if left := f.records(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestAContainerWithoutAKeptRuntimeGoesToTheOneThatKnowsIt(t *testing.T) {
	f := newFixture(t)
	for _, folder := range []string{"usr/bin", "usr/sbin"} {
		if err := os.MkdirAll(f.path(folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{f.runc: f.crun, f.crun: f.runc} {
		f.policy(from)
		f.pod("s-"+filepath.Base(from), "c-"+filepath.Base(from))
		usual := f.path("usr/bin/" + filepath.Base(from))
		if err := os.Symlink(from, usual); err != nil {
			t.Fatal(err)
		}
		f.policy(to)
		id := "c-" + filepath.Base(from)
		kept := f.path("bundles/" + id + "/flox-inner-runtime")
		if data, _ := os.ReadFile(kept); string(data) != from+"\n" {
			t.Fatalf("kept: %q", data)
		}
		for name, damage := range map[string]func(){
			"none":        func() { _ = os.Remove(kept) },
			"cut short":   func() { f.write("bundles/"+id+"/flox-inner-runtime", "/", 0o600) },
			"gone":        func() { f.write("bundles/"+id+"/flox-inner-runtime", "/nonesuch/runc\n", 0o600) },
			"not a path":  func() { f.write("bundles/"+id+"/flox-inner-runtime", "runc\n", 0o600) },
			"the binary":  func() { f.write("bundles/"+id+"/flox-inner-runtime", "\x00\n", 0o600) },
			"a directory": func() { f.write("bundles/"+id+"/flox-inner-runtime", "/etc\n", 0o600) },
		} {
			damage()
			f.ok(id, "kill", id, "15")
			if data, _ := os.ReadFile(kept); string(data) != usual+"\n" {
				t.Errorf("%s: kept: %q", name, data)
			}
		}
	}
}

func TestTheRuntimeOfAnEarlierPolicyIsFoundWhereverItLies(t *testing.T) {
	f := newFixture(t)
	f.pod("s1", "c1")
	_ = os.Remove(f.path("bundles/c1/flox-inner-runtime"))
	f.policy(f.crun)
	f.write("run/flox-node/former-inner-runtimes", "/nonesuch\n"+f.runc+"\n", 0o600)
	f.ok("c1", "kill", "c1", "9")
}

func TestWhatNobodyKnowsGoesToThePolicysRuntime(t *testing.T) {
	f := newFixture(t)
	f.policy(f.crun)
	for _, command := range [][]string{{"features"}, {"delete", "--force", "nobody"}, {"kill", "nobody", "9"}, {"--version"}} {
		f.of("nobody", command...)
		if last := f.calls()[len(f.calls())-1]; !strings.HasPrefix(last, "crun ") {
			t.Errorf("%q went to %s", command, last)
		}
	}
}

func TestADamagedPolicyStopsNewContainers(t *testing.T) {
	f := newFixture(t)
	f.write("etc/flox-node/policy.json", "{", 0o644)
	if status, failure := f.create("other", "s", "c"); status != 1 || !strings.Contains(failure, "policy.json is damaged") {
		t.Errorf("%d, %s", status, failure)
	}
}

func TestACrunThatIsTooOldIsRefusedWithTheReason(t *testing.T) {
	f := newFixture(t)
	old := f.runtime("crun-old", "status", "1.8.1")
	for _, runtime := range []string{old, f.crun, old} { // asked anew whenever the program is another one
		f.policy(runtime)
		status, failure := f.create("sandbox", "s1", "s1")
		if runtime == old && (status != 1 || !strings.Contains(failure, "is crun 1.8.1, which cannot run") ||
			!strings.Contains(failure, "install crun 1.21 or newer")) || runtime == f.crun && status != 0 {
			t.Fatalf("%s: %d, %s", runtime, status, failure)
		}
	}
	before := len(f.calls())
	if status, _ := f.create("sandbox", "s2", "s2"); status != 1 || len(f.calls()) != before {
		t.Errorf("it is asked for its version once: %q", f.calls()[before:])
	}
}

func TestARecordStaysUntilTheRuntimeHasDeletedTheContainer(t *testing.T) {
	f := newFixture(t)
	f.pod("s1", "c1")
	f.write("state/c1/running", "", 0o644)
	for _, log := range []bool{true, false} {
		arguments := []string{"--root", f.path("state"), "delete", "c1"}
		if log {
			arguments = append([]string{"--log", f.path("bundles/c1/log.json")}, arguments...)
		}
		if status, _ := f.call(arguments...); status != 1 || !strings.Contains(f.records(), "c1") {
			t.Errorf("%d, %s", status, f.records())
		}
	}
	f.ok("c1", "delete", "--force", "c1")
	if left := f.records(); left != "s1 pod-s1" {
		t.Errorf("left: %s", left)
	}
	f.ok("s1", "delete", "s1")
	if left := f.records(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestADeleteOfWhatTheRuntimeNoLongerKnowsForgetsIt(t *testing.T) {
	f := newFixture(t)
	f.pod("s1", "c1")
	if err := os.RemoveAll(f.path("state/c1")); err != nil {
		t.Fatal(err)
	}
	if status, _ := f.of("c1", "delete", "c1"); status != 1 || f.records() != "s1 pod-s1" {
		t.Errorf("%d, %s", status, f.records())
	}
}

func TestASandboxTakesTheRecordsOfContainersThatNobodyDeletedWithIt(t *testing.T) {
	f := newFixture(t)
	f.pod("s1", "c1")
	f.pod("s2", "c2")
	f.write("create-fails", "", 0o644)
	for i := 0; i < 3; i++ {
		if status, _ := f.create("container", "s1", fmt.Sprintf("loop%d", i)); status != 1 {
			t.Fatal("the create does not fail")
		}
	}
	if !strings.Contains(f.records(), "loop2") {
		t.Fatal(f.records())
	}
	f.ok("s1", "delete", "s1")
	if left := f.records(); left != "s2 c2 pod-s2" {
		t.Errorf("left: %s", left)
	}
}

func TestWhatContainerdForgotEndsWithTheNextSandbox(t *testing.T) {
	f := newFixture(t)
	f.pod("s1", "c1")
	f.pod("s2", "c2")
	f.pod("s3", "c3")
	for _, bundle := range []string{"s1", "c1", "c2"} {
		if err := os.RemoveAll(f.path("bundles/" + bundle)); err != nil {
			t.Fatal(err)
		}
	}
	if status, failure := f.create("sandbox", "s4", "s4"); status != 0 {
		t.Fatal(failure)
	}
	if left := f.records(); left != "s2 s3 s4 c3 pod-s2 pod-s3 pod-s4" {
		t.Errorf("left: %s", left)
	}
}

func TestASandboxThatCallsItselfOtherwiseIsRefused(t *testing.T) {
	f := newFixture(t)
	status, failure := f.create("sandbox", "another", "s1")
	if status != 1 || !strings.Contains(failure, `the sandbox "s1" calls itself "another"`) || f.records() != "" {
		t.Errorf("%d, %s, %s", status, failure, f.records())
	}
}
