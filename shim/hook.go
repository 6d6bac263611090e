package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/report"
)

const maxTail = 16 << 10

// How Flox ends when a hook did. It ends with 1, whatever the hook's own exit code was.
var hookFailed = []string{"Running hook.on-activate failed", "hook.on-activate script did not complete normally"}

// tellHook writes to the node's log, and for an event of the pod, why a container ended before its command: the failure of its environment's hook,
// with the last line that it printed. It is found in the kubelet's log of the container, which goes with the pod.
func tellHook(id string) {
	container, err := records.Read[records.Container](node.ContainerRecord(id))
	if err != nil {
		return
	}
	record, err := records.Read[records.Pod](node.PodRecord(container.SandboxID))
	if err != nil {
		return
	}
	tail := lastLog(node.ContainerLogs(container.Namespace, container.Pod, record.UID, container.Name))
	line, found := hookFailure(tail)
	if !found {
		return
	}
	message := "the hook of the environment failed, and the container " + container.Name + " ended with 1 before " +
		"its command: " + report.WithoutTokens(line)
	report.Log(report.Event{
		Level: "error", Event: "hook", Container: id, Sandbox: container.SandboxID, Namespace: container.Namespace,
		Pod: container.Pod, Environment: record.Resolution.Environment, Generation: record.Resolution.Generation,
		Message: message,
	})
	if pod.ValidID(record.UID) { // a pod that no kubelet made has any
		told := report.OneLine("environment " + record.Resolution.Environment + ": " + message)
		_ = records.Write(node.Notice(record.UID), records.NewHookNotice(record, told, time.Now()))
	}
}

// hookFailure looks through lines of the kubelet's form, `TIME stderr F TEXT`.
func hookFailure(log string) (line string, found bool) {
	line = "(it printed nothing)"
	for _, each := range strings.Split(log, "\n") {
		fields := strings.SplitN(each, " ", 4)
		if len(fields) < 4 || fields[1] != "stderr" {
			continue
		}
		for _, mark := range hookFailed {
			if strings.Contains(fields[3], mark) {
				return line, true
			}
		}
		if text := strings.TrimSpace(fields[3]); text != "" {
			line = text
		}
	}
	return "", false
}

// lastLog reads the end of the newest log in a folder.
func lastLog(folder string) string {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return ""
	}
	newest, at := "", fs.FileInfo(nil)
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(entry.Name(), ".log") {
			continue
		}
		if at == nil || info.ModTime().After(at.ModTime()) {
			newest, at = entry.Name(), info
		}
	}
	if at == nil {
		return ""
	}
	file, err := os.Open(filepath.Join(folder, newest))
	if err != nil {
		return ""
	}
	defer file.Close()
	data := make([]byte, maxTail)
	n, err := file.ReadAt(data, max(0, at.Size()-maxTail))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(data[:n])
}
