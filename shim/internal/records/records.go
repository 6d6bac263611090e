// Package records holds what the shim and the Python side tell each other: requests, answers, and records of pods and
// containers. Their JSON schemas are installer/flox_node/state/schemas/*.schema.json; both sides' tests read the same
// examples. Fields that a reader does not know are left alone: records only grow.
package records

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
)

const (
	schemaVersion  = 1
	requestVersion = 2
	maxSize        = 1 << 20
)

// Request asks the Python side for an environment.
type Request struct {
	SchemaVersion int           `json:"schema_version"`
	Reference     pod.Reference `json:"reference"`
	Mode          string        `json:"mode"` // run or dev
	Pod           pod.Pod       `json:"pod"`
}

// NewRequest makes the request for one sandbox.
func NewRequest(wishes pod.Wishes, of pod.Pod) Request {
	return Request{requestVersion, wishes.Reference, wishes.Mode, of}
}

// Check says what is wrong with a request.
func (r Request) Check() error {
	return errors.Join(
		check(r.SchemaVersion == requestVersion, "schema_version"),
		check(r.Reference.Environment != "", "reference"),
		check(r.Mode == "run" || r.Mode == "dev", "mode"),
		checkPod(r.Pod.Namespace, r.Pod.Name, r.Pod.SandboxID),
	)
}

// Resolution is what an environment's name means on this node, for the whole life of a pod.
type Resolution struct {
	Environment string `json:"environment"` // owner/name
	Generation  int    `json:"generation"`
	Commit      string `json:"commit"` // of the environment's branch
	Mode        string `json:"mode"`
	System      string `json:"system"`     // x86_64-linux
	StorePath   string `json:"store_path"` // of the built environment
}

// Check says what is wrong with a resolution; a right one is safe to build paths from.
func (r Resolution) Check() error {
	return errors.Join(
		checkEnvironment(r.Environment),
		check(r.Generation >= 1, "generation"),
		check(len(r.Commit) == 40 && consistsOf(r.Commit, "0123456789abcdef"), "commit"),
		check(r.Mode == "run" || r.Mode == "dev", "mode"),
		check(validSystem(r.System), "system"),
		check(ValidStorePath(r.StorePath), "store_path"),
	)
}

// Answer is what the Python side says to a request.
type Answer struct {
	SchemaVersion int         `json:"schema_version"`
	OK            *bool       `json:"ok"`
	Resolution    *Resolution `json:"resolution,omitempty"`
	Warning       string      `json:"warning,omitempty"` // for the node's log
	Code          string      `json:"code,omitempty"`
	Final         bool        `json:"final,omitempty"` // trying again is of no use
	Message       string      `json:"message,omitempty"`
}

// Check says what is wrong with an answer.
func (a Answer) Check() error {
	if err := errors.Join(checkVersion(a.SchemaVersion), check(a.OK != nil, "ok")); err != nil {
		return err
	}
	if *a.OK {
		if a.Resolution == nil {
			return check(false, "resolution")
		}
		return errors.Join(a.Resolution.Check(), check(a.Warning == "" || isLine(a.Warning), "warning"))
	}
	return errors.Join(check(answerCodes[a.Code], "code"), check(isLine(a.Message), "message"))
}

// Grant is what the hub granted to one token: for a short time it is an answer without a request.
type Grant struct {
	SchemaVersion int        `json:"schema_version"`
	GrantedAt     float64    `json:"granted_at"` // seconds since the epoch
	Resolution    Resolution `json:"resolution"`
}

// Check says what is wrong with a grant.
func (g Grant) Check() error {
	return errors.Join(
		checkVersion(g.SchemaVersion), check(g.GrantedAt > 0 && g.GrantedAt < 1<<40, "granted_at"), g.Resolution.Check(),
	)
}

func isLine(text string) bool {
	return text != "" && utf8.RuneCountInString(text) <= 1024 && !strings.ContainsAny(text, "\r\n")
}

var answerCodes = map[string]bool{
	"environment-not-found": true, "access-denied": true, "token-expired": true, "not-allowed": true, "unsupported": true,
	"conflict": true, "not-trusted": true, "not-built": true, "too-large": true, "disk-full": true, "network": true,
	"build-failed": true, "fetching": true, "timeout": true, "bad-request": true, "corrupt": true, "bug": true,
}

// Pod is the record of a sandbox: all containers of the pod use what it was resolved to.
type Pod struct {
	SchemaVersion int        `json:"schema_version"`
	SandboxID     string     `json:"sandbox_id"`
	Namespace     string     `json:"namespace"`
	Name          string     `json:"name"`
	UID           string     `json:"uid"`
	Bundle        string     `json:"bundle,omitempty"` // of the sandbox; records of older versions have none
	Resolution    Resolution `json:"resolution"`
}

// NewPod makes the record of a sandbox.
func NewPod(of pod.Pod, bundle string, resolution Resolution) Pod {
	return Pod{schemaVersion, of.SandboxID, of.Namespace, of.Name, of.UID, bundle, resolution}
}

// Check says what is wrong with the record of a sandbox.
func (p Pod) Check() error {
	return errors.Join(
		checkVersion(p.SchemaVersion), checkPod(p.Namespace, p.Name, p.SandboxID),
		check(p.Bundle == "" || filepath.IsAbs(p.Bundle), "bundle"), p.Resolution.Check(),
	)
}

// Refusal is the record of a sandbox that was let pass although its pod cannot be started: the first container that
// starts is to fail with the reason. Nobody but the shim reads it.
type Refusal struct {
	SchemaVersion int    `json:"schema_version"`
	SandboxID     string `json:"sandbox_id"`
	Bundle        string `json:"bundle"`
}

// NewRefusal makes the record of a refused sandbox.
func NewRefusal(of pod.Pod, bundle string) Refusal {
	return Refusal{schemaVersion, of.SandboxID, bundle}
}

// Check says what is wrong with the record of a refused sandbox.
func (r Refusal) Check() error {
	return errors.Join(
		checkVersion(r.SchemaVersion), check(pod.ValidID(r.SandboxID), "sandbox_id"),
		check(filepath.IsAbs(r.Bundle), "bundle"),
	)
}

// Container is the record of a container that runs in an environment.
type Container struct {
	SchemaVersion     int    `json:"schema_version"`
	ContainerID       string `json:"container_id"`
	SandboxID         string `json:"sandbox_id"`
	Namespace         string `json:"namespace"`
	Pod               string `json:"pod"`
	Name              string `json:"name"`
	Bundle            string `json:"bundle"`
	StorePath         string `json:"store_path"`
	EnvironmentInExec *bool  `json:"environment_in_exec"` // false: listed in flox.dev/skip-containers-exec
}

// NewContainer makes the record of a container.
func NewContainer(id, name, bundle string, of Pod, inExec bool) Container {
	return Container{
		schemaVersion, id, of.SandboxID, of.Namespace, of.Name, name, bundle, of.Resolution.StorePath, &inExec,
	}
}

// Check says what is wrong with the record of a container.
func (c Container) Check() error {
	return errors.Join(
		checkVersion(c.SchemaVersion),
		check(pod.ValidID(c.ContainerID), "container_id"),
		checkPod(c.Namespace, c.Pod, c.SandboxID),
		check(c.Name != "", "name"),
		check(filepath.IsAbs(c.Bundle), "bundle"),
		check(ValidStorePath(c.StorePath), "store_path"),
		check(c.EnvironmentInExec != nil, "environment_in_exec"),
	)
}

var noticeKinds = []string{"fetching", "hook-failed", "hub-unreachable"}

// Notice is what is to be told to a pod: the DaemonSet's pod makes an event of it.
type Notice struct {
	SchemaVersion int    `json:"schema_version"`
	Namespace     string `json:"namespace"`
	Pod           string `json:"pod"`
	UID           string `json:"uid"`
	Kind          string `json:"kind"` // one of noticeKinds; the shim writes hook-failed
	Message       string `json:"message"`
	AtMillis      int64  `json:"at_ms"` // since the epoch
}

// NewHookNotice tells a pod that the hook of its environment failed.
func NewHookNotice(of Pod, message string, at time.Time) Notice {
	return Notice{schemaVersion, of.Namespace, of.Name, of.UID, "hook-failed", message, at.UnixMilli()}
}

// Check says what is wrong with a notice.
func (n Notice) Check() error {
	return errors.Join(
		checkVersion(n.SchemaVersion), check(n.Namespace != "", "namespace"), check(n.Pod != "", "pod"),
		check(pod.ValidID(n.UID), "uid"), check(slices.Contains(noticeKinds, n.Kind), "kind"),
		check(isLine(n.Message), "message"), check(n.AtMillis > 0, "at_ms"),
	)
}

// Decode reads one record and checks it.
func Decode[T interface{ Check() error }](data []byte) (T, error) {
	var record T
	if err := json.Unmarshal(data, &record); err != nil {
		return record, err
	}
	return record, record.Check()
}

// Read reads the record in a file. The error of a missing file satisfies os.IsNotExist.
func Read[T interface{ Check() error }](path string) (T, error) {
	var none T
	data, err := node.Read(path, maxSize)
	if err != nil {
		return none, err
	}
	record, err := Decode[T](data)
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	return record, nil
}

// Write writes a record, readable by root only.
func Write(path string, record any) error {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(record); err != nil {
		return err
	}
	return node.WriteFile(path, buffer.Bytes(), 0o600)
}

func check(right bool, field string) error {
	if right {
		return nil
	}
	return errors.New("the field `" + field + "` is missing or malformed")
}

func checkVersion(version int) error { return check(version == schemaVersion, "schema_version") }

func checkPod(namespace, name, sandboxID string) error {
	return errors.Join(
		check(namespace != "", "namespace"), check(name != "", "name"), check(pod.ValidID(sandboxID), "sandbox_id"),
	)
}

func checkEnvironment(name string) error {
	reference, err := pod.ParseReference(name)
	return check(err == nil && reference.Generation == 0, "environment")
}

func validSystem(system string) bool {
	architecture, found := strings.CutSuffix(system, "-linux")
	return found && architecture != "" && consistsOf(architecture, "abcdefghijklmnopqrstuvwxyz0123456789_")
}

// ValidStorePath says whether the text is exactly one store path: ^/nix/store/<32 characters of Nix' base 32>-<name>$.
func ValidStorePath(path string) bool {
	base, found := strings.CutPrefix(path, "/nix/store/")
	if !found || len(base) < 34 || len(base) > 244 || base[32] != '-' {
		return false
	}
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	return consistsOf(base[:32], "0123456789abcdfghijklmnpqrsvwxyz") && consistsOf(base[33:], letters+"0123456789+._?=-")
}

func consistsOf(text, alphabet string) bool {
	for i := 0; i < len(text); i++ {
		if strings.IndexByte(alphabet, text[i]) < 0 {
			return false
		}
	}
	return true
}
