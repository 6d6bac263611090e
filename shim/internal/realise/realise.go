// Package realise calls the Python side, which resolves an environment's name and brings its closure onto the node.
package realise

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
	"flox.dev/flox-node/shim/internal/report"
)

const (
	maxAnswer = 64 << 10
	grace     = 2 * time.Second // from the deadline to the end by force
)

// Refusal is the answer that the pod does not get its environment.
type Refusal struct {
	Message string
	Code    string
	Final   bool // only another pod, environment or policy cures it: trying again is of no use
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s (code %s)", r.Message, r.Code) }

// Run gives the environment that a pod asks for. What the hub granted to the pod's token a moment ago needs no question;
// else the Python side is asked, for as long as the policy lets a sandbox wait. Then its whole process group ends; what
// it left running elsewhere (a fetch in a unit of its own) goes on, and a retry joins it.
//
// The error's text is for the pod's event. The detail, when there is one, is for the node's log only.
func Run(request records.Request, policy node.Policy) (resolution records.Resolution, detail string, err error) {
	if resolution, found := fresh(request, policy); found {
		return resolution, "", nil
	}
	deadline := policy.Deadline()
	input, err := json.Marshal(request)
	if err != nil {
		return resolution, "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	stdout, stderr := &head{limit: maxAnswer}, &tail{limit: 4 << 10}
	command := exec.CommandContext(ctx, node.RealiseTool())
	// Nothing of containerd's environment: above all no LD_LIBRARY_PATH, whose last entry is the current folder.
	command.Env = []string{"PATH=" + node.SearchPath(), "LC_ALL=C"}
	command.Dir = "/"
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(input), stdout, stderr
	// It may hold a token in a file, so it is asked to leave before it is made to.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	command.WaitDelay = grace
	// The death signal comes when the *thread* that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	failure := command.Run()
	if ctx.Err() != nil && command.Process != nil {
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	}

	subject := describe(request)
	answer, err := records.Decode[records.Answer](stdout.buffer.Bytes())
	switch refused := answer.OK != nil && !*answer.OK && answer.Message != ""; {
	case refused: // also when the rest of the answer is malformed: its text says most
		return resolution, "", &Refusal{answer.Message, answer.Code, answer.Final}
	case ctx.Err() != nil:
		return resolution, stderr.lastLine(), fmt.Errorf("%s was not ready within %s (code timeout): it may still be "+
			"fetched, and the next attempt goes on from there; `realise.wait_s` of the node's policy sets the time",
			subject, deadline.Round(100*time.Millisecond))
	case errors.Is(failure, os.ErrNotExist), errors.Is(failure, os.ErrPermission):
		return resolution, "", fmt.Errorf("%s cannot be fetched: %w; run `flox-node install` on this node", subject, failure)
	case err != nil || stdout.cut:
		return resolution, stderr.lastLine(), fmt.Errorf("%s cannot be fetched: flox-node-realise gave no usable answer "+
			"(%s, code bug); /var/log/flox-node/runtime.jsonl of the node says more", subject, ended(failure))
	case failure != nil:
		return resolution, stderr.lastLine(), fmt.Errorf("%s cannot be fetched: flox-node-realise ended with %s after "+
			"a good answer (code bug)", subject, ended(failure))
	}
	return *answer.Resolution, answer.Warning, matches(request, *answer.Resolution)
}

// matches refuses an answer to another question.
func matches(request records.Request, resolution records.Resolution) error {
	asked := request.Reference
	if resolution.Environment != asked.Environment || resolution.Mode != request.Mode ||
		asked.Generation != 0 && asked.Generation != resolution.Generation {
		return fmt.Errorf("%s was asked for, and flox-node-realise answered with %s, generation %d, mode %s (code bug)",
			describe(request), resolution.Environment, resolution.Generation, resolution.Mode)
	}
	return nil
}

func describe(request records.Request) string {
	asked := request.Reference
	if asked.Generation == 0 {
		return "environment " + asked.Environment
	}
	return fmt.Sprintf("environment %s, generation %d,", asked.Environment, asked.Generation)
}

func ended(failure error) string {
	if failure == nil {
		return "exit status 0"
	}
	return failure.Error()
}

// head keeps the first bytes of a stream.
type head struct {
	buffer bytes.Buffer
	limit  int
	cut    bool
}

func (h *head) Write(data []byte) (int, error) {
	room := h.limit - h.buffer.Len()
	if len(data) > room {
		h.cut = true
		h.buffer.Write(data[:room])
	} else {
		h.buffer.Write(data)
	}
	return len(data), nil
}

// tail keeps the last bytes of a stream.
type tail struct {
	data  []byte
	limit int
}

func (t *tail) Write(data []byte) (int, error) {
	t.data = append(t.data, data...)
	if surplus := len(t.data) - t.limit; surplus > 0 {
		t.data = append(t.data[:0], t.data[surplus:]...)
	}
	return len(data), nil
}

// lastLine gives the last line of a stream: a traceback ends with the line that says most.
func (t *tail) lastLine() string {
	lines := strings.Split(strings.TrimSpace(string(t.data)), "\n")
	return report.WithoutTokens(lines[len(lines)-1])
}
