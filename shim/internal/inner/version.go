package inner

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"flox.dev/flox-node/shim/internal/node"
)

// The oldest crun that takes the configurations of containerd 1.7 and newer: before, every create ends with "unknown
// version specified".
const oldestCrunMinor = 21

// checkVersion refuses a crun that is too old. It is asked for its version once for each state of its file: two
// milliseconds more at every create would be felt.
func checkVersion(runtime string) error {
	resolved, err := filepath.EvalSymlinks(runtime)
	if err != nil || !strings.Contains(filepath.Base(resolved), "crun") {
		return nil
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(resolved, &stat); err != nil {
		return nil
	}
	identity := fmt.Sprintf("%s %d %d %d %d.%09d", resolved, stat.Dev, stat.Ino, stat.Size, stat.Mtim.Sec, stat.Mtim.Nsec)
	var version string
	if data, err := os.ReadFile(node.RuntimeVersion()); err == nil {
		if known, rest, found := strings.Cut(string(data), "\n"); found && known == identity {
			version = strings.TrimSpace(rest)
		}
	}
	if version == "" {
		output, err := exec.Command(runtime, "--version").Output()
		if version = crunVersion(string(output)); err != nil || version == "" {
			return nil // its create will say what is wrong with it
		}
		_ = node.WriteFile(node.RuntimeVersion(), []byte(identity+"\n"+version+"\n"), 0o600)
	}
	if tooOld(version) {
		return fmt.Errorf("the inner runtime %s is crun %s, which cannot run the containers of this containerd: install "+
			"crun 1.%d or newer, or name another OCI runtime (`inner_runtime`, flox-node policy apply)",
			runtime, version, oldestCrunMinor)
	}
	return nil
}

// crunVersion reads the first line of `crun --version`: `crun version 1.21`.
func crunVersion(output string) string {
	line, _, _ := strings.Cut(output, "\n")
	version, found := strings.CutPrefix(line, "crun version ")
	if !found || len(version) > 64 || strings.ContainsAny(version, " \t\r\"") {
		return ""
	}
	return version
}

func tooOld(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	digits := 0
	for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
		digits++
	}
	first, err := strconv.Atoi(major)
	if err != nil {
		return false
	}
	second, err := strconv.Atoi(rest[:digits])
	return err == nil && (first < 1 || first == 1 && second < oldestCrunMinor)
}
