// Command flox-runtime is the OCI runtime of the handler `flox`: containerd's runc shim calls it in runc's place, it
// prepares the bundles of pods that run in Flox environments, and becomes the node's own OCI runtime. Mounted into such
// a container, it is also what runs between the activation of the environment and the command; see package launch.
package main

import (
	"os"
	goruntime "runtime"

	"flox.dev/flox-node/shim/internal/cmdline"
	"flox.dev/flox-node/shim/internal/inner"
	"flox.dev/flox-node/shim/internal/launch"
	"flox.dev/flox-node/shim/internal/node"
	"flox.dev/flox-node/shim/internal/report"
	"flox.dev/flox-node/shim/internal/view"
)

// What becomes another program does so from the process' first thread, on which all init functions run. From any other one
// there is a moment in which the process looks as if it had ended, and who enters the container just then fails; and the
// death signal that containerd set for its runtime would be lost, for it is a thread's. The launcher does all it does here:
// to be kept on that thread would cost it a thread more.
func init() {
	if launch.Called(os.Args) {
		os.Exit(launch.Main(os.Args[1:]))
	}
	goruntime.LockOSThread()
}

func main() {
	arguments := os.Args[1:]
	if len(arguments) > 0 && arguments[0] == view.HookCommand {
		if err := view.Mount(arguments[1:], os.Stdin); err != nil {
			fail(cmdline.Call{}, err) // the runtime shows what its hook says
		}
		return
	}
	call := cmdline.Parse(arguments)
	runtime, err := prepare(call)
	if err != nil {
		fail(call, err)
	}
	// From here on nothing of ours decides: a damaged policy, record or process must not keep a container from being
	// started, probed or removed.
	switch call.Command {
	case "exec":
		enter(call)
	case "delete":
		if remembers(call.ID()) {
			status, err := remove(call, runtime, arguments)
			if err != nil {
				fail(call, err)
			}
			os.Exit(status)
		}
	}
	fail(call, inner.Become(runtime, arguments))
}

// prepare gives the runtime that the call is for, and prepares what it creates.
func prepare(call cmdline.Call) (runtime string, err error) {
	if call.Command != "create" {
		policy := func() node.Policy {
			policy, _ := node.LoadPolicy()
			return policy
		}
		if runtime, found := inner.Of(call, policy); found {
			return runtime, nil
		}
		return inner.ForAny(policy())
	}
	policy, err := node.LoadPolicy()
	if err != nil {
		return "", err
	}
	if runtime, err = inner.ForNew(policy); err != nil {
		return "", err
	}
	return runtime, create(call, policy, runtime)
}

func fail(call cmdline.Call, err error) {
	report.Fail(call.Log, call.LogFormat, err.Error())
	os.Exit(1)
}
