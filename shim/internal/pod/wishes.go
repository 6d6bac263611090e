package pod

import (
	"fmt"
	"path"
	"sort"
	"strings"
)

// Wishes is what a pod asks for.
type Wishes struct {
	Reference  Reference
	Mode       string // run or dev
	NixMutable bool   // whether packages can be installed in the running container
}

// Wishes judges the `flox.dev/*` annotations without knowing any environment or policy. The error names the annotation,
// what it holds and the right form; only the pod's author can cure it.
//
// flox_node/environments/annotations.py is the same judge for the doctors. tests/unit/records/annotations.*.json hold
// what both say.
func (a Annotations) Wishes() (Wishes, error) {
	mode, modeErr := a.mode()
	reference, err := a.reference()
	mutable, mutableErr := a.mutable()
	return Wishes{Reference: reference, Mode: mode, NixMutable: mutable}, first(err, modeErr, mutableErr)
}

// HasEnvironment says that the pod names an environment, be it a right or a wrong one.
func (a Annotations) HasEnvironment() bool { return a[environment] != "" }

func (a Annotations) reference() (Reference, error) {
	value := a[environment]
	if value == "" {
		return Reference{}, fmt.Errorf("the pod has no annotation %s: add for example `%s: owner/name`, or "+
			"`%s: owner/name:3` for generation 3, to its metadata.annotations", environment, environment, environment)
	}
	reference, err := ParseReference(value)
	if err != nil {
		return Reference{}, fmt.Errorf("the annotation %s holds %s: %w; the right form is owner/name or owner/name:3",
			environment, quote(value), err)
	}
	return reference, nil
}

func (a Annotations) mode() (string, error) {
	switch value := a[activateMode]; value {
	case "", "run":
		return "run", nil
	case "dev":
		return "dev", nil
	default:
		return "", fmt.Errorf("the annotation %s holds %s; it is `run` or `dev`", activateMode, quote(value))
	}
}

func (a Annotations) mutable() (bool, error) {
	switch value := a[nixMutable]; value {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, fmt.Errorf("the annotation %s holds %s; it is `true` or `false`", nixMutable, quote(value))
	}
}

// Warnings tells what in the annotations has no effect, one text each.
func (a Annotations) Warnings() []string {
	var warnings []string
	for key := range a {
		if strings.HasPrefix(key, prefix) && !known[key] {
			warnings = append(warnings, "the annotation "+quote(key)+" is unknown")
		}
	}
	switch value := a[disableMetrics]; value {
	case "", "true", "false":
	default:
		warnings = append(warnings, fmt.Sprintf("the annotation %s holds %s; it is `true` or `false`, and no metrics are "+
			"sent in either case", disableMetrics, quote(value)))
	}
	for _, key := range []string{onlyContainers, skipContainers, skipContainersExec} {
		for _, entry := range entries(a[key]) {
			if !validPattern(entry) {
				warnings = append(warnings, fmt.Sprintf("the annotation %s holds %s, which can be no container's name", key,
					quote(entry)))
			}
		}
	}
	sort.Strings(warnings)
	return warnings
}

var known = map[string]bool{
	environment: true, activateMode: true, disableMetrics: true, nixMutable: true, onlyContainers: true,
	skipContainers: true, skipContainersExec: true,
}

// Skipped says that the pod wants this container left as it is.
func (a Annotations) Skipped() bool {
	only := a[onlyContainers]
	return a.named(skipContainers) || len(entries(only)) > 0 && !a.named(onlyContainers)
}

// ExecSkipped says that the pod wants commands executed in this container (kubectl exec, probes) outside the environment.
func (a Annotations) ExecSkipped() bool { return a.named(skipContainersExec) }

// Chosen says that the pod's author named this container in one of the lists, so that what it runs in is no surprise.
func (a Annotations) Chosen() bool { return a.named(onlyContainers) || a.named(skipContainersExec) }

func (a Annotations) named(key string) bool {
	name := a.ContainerName()
	if name == "" {
		return false
	}
	for _, pattern := range entries(a[key]) {
		if matched, err := path.Match(pattern, name); matched && err == nil && validPattern(pattern) {
			return true
		}
	}
	return false
}

func entries(list string) []string {
	var found []string
	for _, entry := range strings.Split(list, ",") {
		if entry = strings.TrimSpace(entry); entry != "" {
			found = append(found, entry)
		}
	}
	return found
}

// validPattern says that a container may be called so, with `*` and `?` as in a shell.
func validPattern(pattern string) bool {
	return len(pattern) <= maxPart && validWord(strings.NewReplacer("*", "a", "?", "a").Replace(pattern))
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
