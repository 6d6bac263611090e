package activation

import "strings"

// What Flox itself sets. Another activation may have left it in an image, and flox-activations refuses or misreads it.
var own = set(
	"FLOX_ACTIVATE_START_SERVICES", "FLOX_ENV", "FLOX_ENV_CACHE", "FLOX_ENV_DESCRIPTION", "FLOX_ENV_DIRS",
	"FLOX_ENV_LIB_DIRS", "FLOX_ENV_PROJECT", "FLOX_PROMPT_COLOR_1", "FLOX_PROMPT_COLOR_2", "FLOX_PROMPT_ENVIRONMENTS",
	"FLOX_RUNTIME_DIR", "_FLOX_ACTIVATIONS_VERBOSITY", "_FLOX_ACTIVE_ENVIRONMENTS", "_FLOX_AUTO_ACTIVATED_ENVIRONMENTS",
	"_FLOX_ENV_CACHE", "_FLOX_ENV_CUDA_DETECTION", "_FLOX_ENV_DIRS_ADD_SBIN", "_FLOX_ENV_LOG_DIR",
	"_FLOX_EXECUTIVE_VERBOSITY", "_FLOX_HOOK_DIFF", "_FLOX_INVOCATION_TYPES", "_FLOX_PROMPT_HOOK_VERSION",
	"_FLOX_SERVICES_SOCKET", "_FLOX_SET_PROMPT", "_FLOX_START_STATE_DIR", "_FLOX_SUPPRESSED_ENVIRONMENTS", "_activate_d",
	"_flox_activate_tracelevel", "_flox_activate_tracer", "_flox_activations",
)

// What changes how the activation's own programs (Rust, bash, getopt) run. It is meant for the pod's command.
var commands = set(
	"BASHOPTS", "BASH_COMPAT", "BASH_ENV", "BASH_XTRACEFD", "CDPATH", "ENV", "EXECIGNORE", "FLOX_ACTIVATE_TRACE",
	"GETOPT_COMPATIBLE", "GLOBIGNORE", "LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD", "POSIXLY_CORRECT", "PS4", "RUST_LOG",
	"SHELLOPTS",
)

const (
	// A function that bash exported; its name follows.
	function = "BASH_FUNC_"
	// Under this name a variable passes the activation. The launcher gives it its own one back.
	later = "FLOX_NODE_LATER_"
)

func set(names ...string) map[string]bool {
	result := make(map[string]bool, len(names))
	for _, name := range names {
		result[name] = true
	}
	return result
}

// Clean drops what Flox itself sets, and says which names that were.
func Clean(env []string) (kept, dropped []string) {
	kept = make([]string, 0, len(env))
	for _, entry := range env {
		if own[name(entry)] {
			dropped = append(dropped, name(entry))
		} else {
			kept = append(kept, entry)
		}
	}
	return kept, dropped
}

// Defer gives the variables that would change the activation names under which they pass it.
func Defer(env []string) []string {
	result := make([]string, len(env))
	for i, entry := range env {
		if variable := name(entry); commands[variable] || strings.HasPrefix(variable, function) {
			entry = later + entry
		}
		result[i] = entry
	}
	return result
}

// Later passes a variable by the activation, for the command alone.
func Later(entry string) string { return later + entry }

// Restore gives deferred variables their own names back, but for those that the activation itself has set.
func Restore(env []string) []string {
	present := make(map[string]bool, len(env))
	for _, entry := range env {
		present[name(entry)] = true
	}
	result := make([]string, 0, len(env))
	for _, entry := range env {
		original, deferred := strings.CutPrefix(entry, later)
		if !deferred {
			result = append(result, entry)
		} else if !present[name(original)] {
			result = append(result, original)
		}
	}
	return result
}

// Merge gives the environment of a command that is executed in a running container: that of its first process, with
// what the command explicitly sets on top. Explicit is what differs from the container's own configuration, because
// containerd puts the configuration into every exec. PATH is always the first process'.
func Merge(first, configured, execs []string) []string {
	wasConfigured := make(map[string]bool, len(configured))
	for _, entry := range Restore(configured) {
		wasConfigured[entry] = true
	}
	merged := append([]string(nil), first...)
	place := make(map[string]int, len(merged))
	for i, entry := range merged {
		place[name(entry)] = i
	}
	explicit, _ := Clean(execs)
	for _, entry := range explicit {
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
	env, _ := Clean(execs)
	env = append(env, "FLOX_ENV="+storePath)
	for i, entry := range env {
		if path, found := strings.CutPrefix(entry, "PATH="); found {
			env[i] = "PATH=" + storePath + "/bin:" + path
			return env
		}
	}
	return append(env, "PATH="+storePath+"/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// Get gives a variable's value, or another one where it is not set.
func Get(env []string, variable, otherwise string) string {
	for _, entry := range env {
		if value, found := strings.CutPrefix(entry, variable+"="); found {
			return value
		}
	}
	return otherwise
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

// Set gives an environment in which some variables have other values.
func Set(env, entries []string) []string {
	changed := make(map[string]bool, len(entries))
	for _, entry := range entries {
		changed[name(entry)] = true
	}
	result := make([]string, 0, len(env)+len(entries))
	for _, entry := range env {
		if !changed[name(entry)] {
			result = append(result, entry)
		}
	}
	return append(result, entries...)
}
