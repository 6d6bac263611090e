// Package pod reads what a pod asks for: the annotations that containerd's CRI plugin and the user put on a container.
//
// Every value here is written by whoever may create pods, so nothing passes that could be an option, a path or a log line.
package pod

import (
	"fmt"
	"strconv"
)

// Annotations of containerd's CRI plugin.
const (
	containerType = "io.kubernetes.cri.container-type"
	containerName = "io.kubernetes.cri.container-name"
	sandboxID     = "io.kubernetes.cri.sandbox-id"
	sandboxName   = "io.kubernetes.cri.sandbox-name"
	sandboxNS     = "io.kubernetes.cri.sandbox-namespace"
	sandboxUID    = "io.kubernetes.cri.sandbox-uid"
)

// Annotations of the user. `flox.dev/only-containers` and patterns in the lists are extensions of ours.
const (
	prefix             = "flox.dev/"
	environment        = prefix + "environment"
	activateMode       = prefix + "activate-mode"
	disableMetrics     = prefix + "disable-metrics"
	nixMutable         = prefix + "nix-mutable"
	onlyContainers     = prefix + "only-containers"
	skipContainers     = prefix + "skip-containers"
	skipContainersExec = prefix + "skip-containers-exec"
)

// Pod says which pod a container belongs to.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	SandboxID string `json:"sandbox_id"`
}

// Annotations are those of one OCI configuration.
type Annotations map[string]string

// IsSandbox says that this is the pod's sandbox (the pause container), in which nothing of the user's runs.
func (a Annotations) IsSandbox() bool { return a[containerType] == "sandbox" }

// IsContainer says that this is one of the pod's containers.
func (a Annotations) IsContainer() bool { return a[containerType] == "container" }

// ContainerName is the name in the pod's manifest.
func (a Annotations) ContainerName() string { return a[containerName] }

// Namespace is the pod's.
func (a Annotations) Namespace() string { return a[sandboxNS] }

// Pod gives the pod's identity; its sandbox id is safe as a file name.
func (a Annotations) Pod() (Pod, error) {
	pod := Pod{Namespace: a[sandboxNS], Name: a[sandboxName], UID: a[sandboxUID], SandboxID: a[sandboxID]}
	if !ValidID(pod.SandboxID) {
		return Pod{}, fmt.Errorf("the annotation %s holds %s, which is no id of a sandbox", sandboxID, quote(pod.SandboxID))
	}
	return pod, nil
}

// ValidID says that an id of a container is safe as a file name.
func ValidID(id string) bool { return len(id) <= 2*maxPart && validWord(id) }

// validWord is ^[A-Za-z0-9][A-Za-z0-9._-]*$, without the price of a regular expression at every start.
func validWord(word string) bool {
	for i := 0; i < len(word); i++ {
		c := word[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return word != ""
}

// quote shows a value of foreign origin: escaped, and not longer than a line.
func quote(value string) string {
	if len(value) > maxPart {
		value = value[:maxPart] + "..."
	}
	return strconv.QuoteToASCII(value)
}
