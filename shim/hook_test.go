package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
)

func TestAHookThatFailedIsToldInTheLogAndToThePod(t *testing.T) {
	node.SetPrefix(t.TempDir())
	t.Cleanup(func() { node.SetPrefix("") })
	const uid = "b1946ac9-2b92-4d2e-a0c5-0a1d1b9f0001"
	pod := records.Pod{
		SchemaVersion: 1, SandboxID: "sandbox", Namespace: "ci", Name: "job", UID: uid,
		Resolution: records.Resolution{
			Environment: "acme/x", Generation: 1, Commit: strings.Repeat("0", 40), Mode: "dev", System: "x86_64-linux",
			StorePath: "/nix/store/" + strings.Repeat("0", 32) + "-environment",
		},
	}
	container := records.NewContainer("container", "build", "/bundle", pod, true)
	folder := node.ContainerLogs("ci", "job", uid, "build")
	log := "2026-01-01T00:00:00Z stdout F fine\n" +
		"2026-01-01T00:00:00Z stderr F no database flox_secret\n" +
		"2026-01-01T00:00:00Z stderr F Error: Running hook.on-activate failed\n"
	for _, err := range []error{
		records.Write(node.PodRecord("sandbox"), pod), records.Write(node.ContainerRecord("container"), container),
		os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, "0.log"), []byte(log), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}

	tellHook("container")

	notice, err := records.Read[records.Notice](node.Notice(uid))
	if err != nil || notice.Kind != "hook-failed" || notice.Pod != "job" || !strings.Contains(notice.Message, "acme/x") ||
		!strings.HasSuffix(notice.Message, "ended with 1 before its command: no database (removed)") {
		t.Fatalf("%+v, %v", notice, err)
	}
	told, err := os.ReadFile(node.EventFile())
	if err != nil || !strings.Contains(string(told), `"event":"hook"`) || !strings.Contains(string(told), "no database") {
		t.Fatalf("%s, %v", told, err)
	}
}

func TestAContainerThatEndedByItselfIsNotAHookThatFailed(t *testing.T) {
	for _, log := range []string{"", "x", "2026-01-01T00:00:00Z stdout F Running hook.on-activate failed\n"} {
		if line, found := hookFailure(log); found {
			t.Errorf("%q: %q", log, line)
		}
	}
}
