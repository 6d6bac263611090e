// Command flox-runtime is the OCI runtime of the handler `flox`: containerd's runc shim calls it in runc's place, it
// prepares the bundles of pods that run in Flox environments, and becomes the node's own OCI runtime.
package main

import (
	"os"

	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/report"
)

func main() {
	arguments := os.Args[1:]
	call := cmdline.Parse(arguments)
	policy, err := node.LoadPolicy()
	creating := call.Command == "create"
	if creating {
		if err == nil {
			err = create(call, policy)
		}
		if err != nil {
			fail(call, err)
		}
	}
	// From here on nothing of ours decides: a damaged policy, record or process must not keep a container from being
	// started, probed or removed.
	switch call.Command {
	case "exec":
		enter(call)
	case "delete":
		forget(call)
	}
	fail(call, node.ExecInner(policy, creating, arguments))
}

func fail(call cmdline.Call, err error) {
	report.Fail(call.Log, call.LogFormat, err.Error())
	os.Exit(1)
}
