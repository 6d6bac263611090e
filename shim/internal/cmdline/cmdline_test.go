package cmdline

import (
	"strings"
	"testing"
)

func TestParseReadsTheCommandLinesOfContainerd(t *testing.T) {
	const global = "--root /run/containerd/runc/k8s.io --log /b/ID/log.json --log-format json "
	cases := []struct {
		line, command, id, bundle, process string
		force                              bool
	}{
		{line: global + "create --bundle /b/ID --pid-file /b/ID/init.pid ID", command: "create", id: "ID", bundle: "/b/ID"},
		{line: global + "--systemd-cgroup create --bundle=/b/ID ID", command: "create", id: "ID", bundle: "/b/ID"},
		{line: "--root=/r --log=/b/ID/log.json --log-format=json --systemd-cgroup=true create -b /b/ID ID", command: "create", id: "ID", bundle: "/b/ID"},
		{line: global + "create --bundle /b/ID --console-socket /tmp/pty1/pty.sock --no-pivot ID", command: "create", id: "ID", bundle: "/b/ID"},
		{line: global + "exec --process /tmp/runc-process1 --console-socket /tmp/p --detach --pid-file /b/ID/x.pid ID", command: "exec", id: "ID", process: "/tmp/runc-process1"},
		{line: global + "exec -d -p=/tmp/x ID", command: "exec", id: "ID", process: "/tmp/x"},
		{line: global + "delete ID", command: "delete", id: "ID"},
		{line: global + "delete --force ID", command: "delete", id: "ID", force: true},
		{line: global + "kill --all ID 9", command: "kill", id: "ID"},
		{line: global + "start ID", command: "start", id: "ID"},
		{line: global + "update --resources=- ID", command: "update", id: "ID"},
		{line: global + "ps --format json ID", command: "ps", id: "ID"},
		{line: "features", command: "features"},
		{line: "--version"},
		{line: "--debug --log"},
		{line: ""},
	}
	for _, c := range cases {
		t.Run(c.line, func(t *testing.T) {
			call := Parse(strings.Fields(c.line))
			if call.Command != c.command {
				t.Fatalf("command %q", call.Command)
			}
			if strings.Contains(c.line, "--root /run") && call.Root != "/run/containerd/runc/k8s.io" {
				t.Fatalf("root %q", call.Root)
			}
			if strings.Contains(c.line, "--log /b") && (call.Log != "/b/ID/log.json" || call.LogFormat != "json" || call.Bundle() != "/b/ID") {
				t.Fatalf("log %q %q", call.Log, call.LogFormat)
			}
			if id := call.ID(); id != c.id {
				t.Fatalf("id %q", id)
			}
			if bundle, _ := call.Option("bundle", "b"); bundle != c.bundle {
				t.Fatalf("bundle %q", bundle)
			}
			if process, _ := call.Option("process", "p"); process != c.process {
				t.Fatalf("process %q", process)
			}
			if call.Has("force", "f") != c.force {
				t.Fatal("force")
			}
		})
	}
}

func TestAnIDThatLooksLikeAnOptionIsFoundBehindTwoDashes(t *testing.T) {
	if id := Parse([]string{"delete", "--", "--force"}).ID(); id != "--force" {
		t.Fatal(id)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--root\x00/r\x00--log=/l\x00create\x00--bundle\x00/b\x00id")
	f.Add("--\x00-\x00--=\x00exec\x00-p")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		call := Parse(args)
		call.ID()
		call.Bundle()
		call.Option("bundle", "b")
		if call.Command != "" && !contains(args, call.Command) {
			t.Fatalf("the command %q is none of %q", call.Command, args)
		}
	})
}

func contains(list []string, wanted string) bool {
	for _, entry := range list {
		if entry == wanted {
			return true
		}
	}
	return false
}
