package realise

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"syscall"
	"time"

	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/records"
)

// fresh gives what the hub granted to the pod's own token within the policy's freshness, when it still is on the node.
// Whatever is in doubt is the Python side's to judge and to tell. It writes such grants, and defines their names
// (installer/flox_node/environments/grants.py).
func fresh(request records.Request, policy node.Policy) (none records.Resolution, found bool) {
	owner, _, _ := strings.Cut(request.Reference.Environment, "/")
	rules := policy.InNamespace(request.Pod.Namespace)
	if policy.Freshness() == 0 || !rules.AllowsOwner(owner) || !rules.AllowsMode(request.Mode) {
		return none, false
	}
	key, err := os.ReadFile(node.GrantKey())
	if err != nil {
		return none, false
	}
	token, certain := podToken(request.Pod.UID, policy)
	if !certain {
		return none, false
	}
	name := grantName(key, policy.GitURL(), system(), request, token)
	grant, err := records.Read[records.Grant](node.GrantFile(name))
	if err != nil {
		return none, false
	}
	granted := time.UnixMicro(int64(grant.GrantedAt * 1e6))
	// A clock that was set back makes a grant one of the future: then it does not count.
	if age := time.Since(granted.Round(0)); age < 0 || age > policy.Freshness() {
		return none, false
	}
	return grant.Resolution, matches(request, grant.Resolution) == nil && isRooted(grant.Resolution.StorePath)
}

func grantName(key []byte, hub, system string, request records.Request, token string) string {
	hash := hmac.New(sha256.New, key)
	words := []string{hub, request.Reference.String(), request.Mode, system, token}
	_, _ = hash.Write([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(hash.Sum(nil))
}

// isRooted says whether a store path is there and a garbage collection would leave it.
func isRooted(storePath string) bool {
	hash, _, _ := strings.Cut(strings.TrimPrefix(storePath, "/nix/store/"), "-")
	rooted, err := os.Readlink(node.EnvironmentRoot(hash))
	if err != nil || rooted != storePath {
		return false
	}
	info, err := os.Lstat(node.Path(storePath))
	return err == nil && info.IsDir()
}

// system is this node's system in Nix' words: x86_64-linux, aarch64-linux.
func system() string {
	var name syscall.Utsname
	_ = syscall.Uname(&name)
	var machine strings.Builder
	for _, letter := range name.Machine {
		if letter == 0 {
			break
		}
		machine.WriteByte(byte(letter))
	}
	return machine.String() + "-linux"
}
