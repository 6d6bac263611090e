package activation

import "strings"

// Clean drops what another activation left behind: flox-activations refuses or misreads it.
func Clean(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, entry := range env {
		if !strings.HasPrefix(entry, "_FLOX_") && !strings.HasPrefix(entry, "FLOX_ENV") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// Merge gives the environment of a command that is executed in a running container: that of its first process, with
// what the command explicitly sets on top. Explicit is what differs from the container's own configuration, because
// containerd puts the configuration into every exec. PATH is always the first process'.
func Merge(first, configured, execs []string) []string {
	wasConfigured := make(map[string]bool, len(configured))
	for _, entry := range configured {
		wasConfigured[entry] = true
	}
	merged := append([]string(nil), first...)
	place := make(map[string]int, len(merged))
	for i, entry := range merged {
		place[name(entry)] = i
	}
	for _, entry := range Clean(execs) {
		if wasConfigured[entry] || name(entry) == "PATH" {
			continue
		}
		if i, found := place[name(entry)]; found {
			merged[i] = entry
		} else {
			place[name(entry)] = len(merged)
			merged = append(merged, entry)
		}
	}
	return merged
}

// Bare is the environment of a command whose container cannot be asked: what it has, with the environment's programs
// in front of its PATH. It lacks variables and hooks, but a probe finds its program.
func Bare(execs []string, storePath string) []string {
	env := append(Clean(execs), "FLOX_ENV="+storePath)
	for i, entry := range env {
		if path, found := strings.CutPrefix(entry, "PATH="); found {
			env[i] = "PATH=" + storePath + "/bin:" + path
			return env
		}
	}
	return append(env, "PATH="+storePath+"/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// Has says that a variable is set.
func Has(env []string, variable string) bool {
	for _, entry := range env {
		if name(entry) == variable {
			return true
		}
	}
	return false
}

func name(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}
