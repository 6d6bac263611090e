// Package pod reads what a pod asks for: the annotations that containerd's CRI plugin and the user put on a container.
//
// Every value here is written by whoever may create pods, so nothing passes that could be an option, a path or a log line.
package pod

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
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

// Annotations of the user.
const (
	environment        = "flox.dev/environment"
	activateMode       = "flox.dev/activate-mode"
	nixMutable         = "flox.dev/nix-mutable"
	skipContainers     = "flox.dev/skip-containers"
	skipContainersExec = "flox.dev/skip-containers-exec"
)

const maxPart = 128

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

// Pod gives the pod's identity; its sandbox id is safe as a file name.
func (a Annotations) Pod() (Pod, error) {
	pod := Pod{Namespace: a[sandboxNS], Name: a[sandboxName], UID: a[sandboxUID], SandboxID: a[sandboxID]}
	if !ValidID(pod.SandboxID) {
		return Pod{}, fmt.Errorf("the annotation %s holds %s, which is no id of a sandbox", sandboxID, quote(pod.SandboxID))
	}
	return pod, nil
}

// Environment is what the annotation flox.dev/environment names.
type Environment struct {
	Name       string // owner/name
	Generation int    // 0: the live one
}

// Environment reads flox.dev/environment. The error names the annotation and the right form.
func (a Annotations) Environment() (Environment, error) {
	value := a[environment]
	if value == "" {
		return Environment{}, fmt.Errorf("the pod has no annotation %s: add for example `%s: owner/name`, or "+
			"`%s: owner/name:3` for generation 3, to its metadata.annotations", environment, environment, environment)
	}
	wrong := func(why string) (Environment, error) {
		return Environment{}, fmt.Errorf("the annotation %s holds %s: %s; the right form is owner/name or owner/name:3",
			environment, quote(value), why)
	}
	if before, after, found := strings.Cut(value, "@"); found {
		if repaired, err := (Annotations{environment: before + ":" + after}).Environment(); err == nil {
			return wrong(fmt.Sprintf("a generation is written with a colon, %s:%d", repaired.Name, repaired.Generation))
		}
		return wrong("`@` belongs to no name")
	}
	name, generation, pinned := strings.Cut(value, ":")
	owner, short, found := strings.Cut(name, "/")
	if !found {
		return wrong("it names no owner")
	}
	if !validPart(owner) || !validPart(short) {
		return wrong("owner and name are letters, digits, `.`, `_` and `-`, and begin with a letter or a digit")
	}
	if !pinned {
		return Environment{Name: name}, nil
	}
	number, err := strconv.ParseUint(generation, 10, 31)
	if err != nil || number == 0 || generation[0] == '0' || generation[0] == '+' {
		return wrong("a generation is a positive number")
	}
	return Environment{Name: name, Generation: int(number)}, nil
}

// Mode reads flox.dev/activate-mode; without it the mode is "run".
func (a Annotations) Mode() (string, error) {
	switch value := a[activateMode]; value {
	case "", "run":
		return "run", nil
	case "dev":
		return "dev", nil
	default:
		return "", fmt.Errorf("the annotation %s holds %s; it is `run` or `dev`", activateMode, quote(value))
	}
}

// CheckSupported refuses what this version cannot do, instead of doing something else.
func (a Annotations) CheckSupported() error {
	switch a[nixMutable] {
	case "", "false":
		return nil
	}
	return errors.New("the annotation " + nixMutable + " is not supported by this version of flox-node: remove it")
}

// Skipped says that the pod wants this container left as it is.
func (a Annotations) Skipped() bool { return listed(a[skipContainers], a[containerName]) }

// ExecSkipped says that the pod wants commands executed in this container (kubectl exec, probes) outside the environment.
func (a Annotations) ExecSkipped() bool { return listed(a[skipContainersExec], a[containerName]) }

// ValidID says that an id of a container is safe as a file name.
func ValidID(id string) bool { return len(id) <= 2*maxPart && validWord(id) }

func listed(list, name string) bool {
	if name == "" {
		return false
	}
	for _, entry := range strings.Split(list, ",") {
		if strings.TrimSpace(entry) == name {
			return true
		}
	}
	return false
}

func validPart(part string) bool { return len(part) <= maxPart && validWord(part) }

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
	return strconv.Quote(value)
}
