// Package node knows the files of the node: where they are, the administrator's policy, and the inner runtime.
package node

import (
	"os"
	"path/filepath"
)

// The paths of the node that the shim uses; nothing else in it names one.
const (
	policyFile    = "/etc/flox-node/policy.json"
	realiseTool   = "/opt/flox-node/bin/flox-node-realise"
	busybox       = "/opt/flox-node/current/bin/busybox"
	podDir        = "/run/flox-node/pods"
	refusalDir    = "/run/flox-node/refusals"
	logDir        = "/var/log/pods"
	containerDir  = "/run/flox-node/containers"
	noticeDir     = "/run/flox-node/notices"
	versionFile   = "/run/flox-node/inner-runtime-version"
	formerFile    = "/run/flox-node/former-inner-runtimes"
	rootDir       = "/nix/var/nix/gcroots/flox-node"
	grantDir      = "/var/lib/flox-node/envs/grants"
	grantKey      = "/var/lib/flox-node/envs/grant.key"
	eventFile     = "/var/log/flox-node/runtime.jsonl"
	defaultPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	maxPolicySize = 1 << 20
)

// prefix stands before every path of the node. It is empty in the product; the tests' build of the shim sets it at
// link time (-X flox.dev/flox-node/shim/internal/node.prefix=DIR), so that no environment variable can move a path.
var prefix string

// SetPrefix moves every path of the node below dir, for the Go tests of the other packages.
func SetPrefix(dir string) { prefix = dir }

// Path gives the place on the host of an absolute path such as /nix/store/....
func Path(path string) string { return prefix + path }

// RealiseTool is the program of the Python side that turns an environment's name into a store path.
func RealiseTool() string { return Path(realiseTool) }

// GrantKey is the file with the node's key of the grants' names.
func GrantKey() string { return Path(grantKey) }

// GrantFile is what the hub granted to a token.
func GrantFile(name string) string { return Path(filepath.Join(grantDir, name+".json")) }

// EnvironmentRoot is the symlink that keeps a cached environment, by its store path's hash.
func EnvironmentRoot(hash string) string { return Path(filepath.Join(rootDir, "env-"+hash)) }

// The kubelet's root folders of all platforms (installer/flox_node/platforms).
var kubeletRoots = []string{"/var/lib/kubelet", "/var/lib/k0s/kubelet", "/var/snap/microk8s/common/var/lib/kubelet"}

// PodVolumes gives the folders in which a pod's volumes may lie.
func PodVolumes(uid string, policy Policy) []string {
	roots := kubeletRoots
	if policy.KubeletRoot != "" {
		roots = []string{policy.KubeletRoot}
	}
	folders := make([]string, 0, len(roots))
	for _, root := range roots {
		folders = append(folders, Path(filepath.Join(root, "pods", uid, "volumes")))
	}
	return folders
}

// Busybox is the symlink of the current payload to its static busybox in the store.
func Busybox() string { return Path(busybox) }

// PayloadManifest is the manifest of the current payload.
func PayloadManifest() string { return Path("/opt/flox-node/current/manifest.json") }

// NixStore is the program nix-store of the current payload.
func NixStore() string { return Path("/opt/flox-node/current/bin/nix-store") }

// PodRecord is the file that holds what a sandbox was resolved to.
func PodRecord(sandboxID string) string { return Path(filepath.Join(podDir, sandboxID+".json")) }

// Refusal is the file that says that a sandbox was let pass although its pod cannot be started.
func Refusal(sandboxID string) string { return Path(filepath.Join(refusalDir, sandboxID+".json")) }

// ContainerLogs is the folder in which the kubelet keeps what a container printed, one file a start.
func ContainerLogs(namespace, pod, uid, container string) string {
	return Path(filepath.Join(logDir, namespace+"_"+pod+"_"+uid, container))
}

// Notice is the file that holds what is to be told to a pod.
func Notice(uid string) string { return Path(filepath.Join(noticeDir, uid+".json")) }

// ContainerRecord is the file that says that a container runs in an environment.
func ContainerRecord(id string) string { return Path(filepath.Join(containerDir, id+".json")) }

// RuntimeVersion is the file that remembers which version a program of an inner runtime has.
func RuntimeVersion() string { return Path(versionFile) }

// FormerRuntimes is the file in which the Python side lists the inner runtimes of earlier policies, one path a line.
func FormerRuntimes() string { return Path(formerFile) }

// PodRoot is the symlink that keeps a sandbox's environment from Nix' garbage collector.
func PodRoot(sandboxID string) string { return Path(filepath.Join(rootDir, "pod-"+sandboxID)) }

// EventFile is the node's log of the handler.
func EventFile() string { return Path(eventFile) }

// SearchPath is the PATH of the programs that the shim starts.
func SearchPath() string { return defaultPath }

// WriteFile writes a file of ours as a whole: readers see the old content or the new one. A missing folder is made.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	err := ReplaceFile(path, data, mode, os.Geteuid(), os.Getegid())
	if os.IsNotExist(err) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return ReplaceFile(path, data, mode, os.Geteuid(), os.Getegid())
	}
	return err
}

// ReplaceFile puts new content into a file's place with one rename.
func ReplaceFile(path string, data []byte, mode os.FileMode, uid, gid int) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".flox-*")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil && (uid != os.Geteuid() || gid != os.Getegid()) {
		err = file.Chown(uid, gid)
	}
	if err == nil {
		err = file.Chmod(mode)
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	return err
}

// Symlink makes path a symlink to target, replacing what was there as a whole.
func Symlink(target, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	_ = os.Remove(temporary)
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
