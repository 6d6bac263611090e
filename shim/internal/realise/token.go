package realise

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/pod"
)

const (
	tokenFile    = "floxhub-token"
	largestToken = 1 << 14
)

// podToken finds the pod's FloxHub token where the Python side finds it (installer/flox_node/environments/tokens.py):
// in secret, projected and CSI volumes. It is certain only when all files say the same, or when there is none.
func podToken(uid string, policy node.Policy) (token string, certain bool) {
	if !pod.ValidID(uid) {
		return "", true // a pod that no kubelet made has no volumes
	}
	found := false
	for _, volumes := range node.PodVolumes(uid, policy) {
		if real, err := filepath.EvalSymlinks(volumes); err == nil { // the kubelet's root may be a link
			volumes = real
		}
		for kind, below := range map[string]string{
			"kubernetes.io~secret": "", "kubernetes.io~projected": "", "kubernetes.io~csi": "mount",
		} {
			entries, err := os.ReadDir(filepath.Join(volumes, kind))
			if err != nil && !os.IsNotExist(err) {
				return "", false
			}
			for _, entry := range entries {
				text, present := readToken(filepath.Join(volumes, kind, entry.Name(), below))
				if present && found && text != token {
					return "", false
				}
				if present {
					token, found = text, true
				}
			}
		}
	}
	return token, true
}

// readToken reads the file of a volume, which the kubelet makes a link within the volume. The volume itself is none.
func readToken(volume string) (text string, present bool) {
	if real, err := filepath.EvalSymlinks(volume); err != nil || real != volume {
		return "", false
	}
	path, err := filepath.EvalSymlinks(filepath.Join(volume, tokenFile))
	if err != nil || !strings.HasPrefix(path, volume+"/") {
		return "", false
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", false
	}
	// What somebody else may write into could be another file by now than the one that was looked at.
	really, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
	if err != nil || !strings.HasPrefix(really, volume+"/") {
		return "", false
	}
	data, err := io.ReadAll(io.LimitReader(file, largestToken))
	return strings.TrimSpace(string(data)), err == nil
}
