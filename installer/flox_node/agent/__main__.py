"""`flox-node-agent node|reporter`: the two containers of the DaemonSet's pod, and the processes that work for them.

node --mode=install|uninstall     the loop on the node
reporter [--alone]                the loop that has the API server told; alone: on nodes that need no `node`
look ROOT PAYLOAD SETTINGS        one look at the node, printed as JSON
gc ROOT                           start the node's own garbage collection
report [--alone]                  one report to the API server
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from flox_node.errors import FloxNodeError, UsageError

_MODES = ("install", "uninstall")


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Run one of them; its exit code. An error is printed as one JSON object, as `flox-node --json` does."""
    try:
        return _run(list(arguments))
    except FloxNodeError as error:
        print(json.dumps(error.as_dict()), flush=True)
        return error.exit_code


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["node", mode] if mode.removeprefix("--mode=") in _MODES:
            from flox_node.agent import node

            return node.serve(node.NodeAgent(mode.removeprefix("--mode=")))
        case ["reporter", "--alone"]:
            from flox_node.agent import reporter

            return reporter.serve_alone()
        case ["reporter", *_]:
            from flox_node.agent import reporter

            return reporter.serve()
        case ["look", root, payload, folder]:
            from flox_node import settings
            from flox_node.agent import observe
            from flox_node.host import Host
            from flox_node.payload import open_payload

            seen = observe.look(Host.at(root), open_payload(Path(payload)), settings.load(Path(folder)))
            print(observe.show(seen))
        case ["gc", root]:
            from flox_node.host import Host

            Host.at(root).systemd.start("flox-node-gc.service", timeout=60)
        case ["report", *alone] if alone in ([], ["--alone"]):
            _report(alone=bool(alone))
        case ["-h" | "--help"]:
            print(__doc__, end="")
        case _:
            raise UsageError(f"flox-node-agent: {' '.join(arguments)} is not understood.", remedy=__doc__ or "")
    return 0


def _report(*, alone: bool) -> None:
    from flox_node.agent.report import Reporter
    from flox_node.kube.incluster import InCluster

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what is held is given back on the way out
    try:
        name, namespace = os.environ["NODE_NAME"], os.environ["POD_NAMESPACE"]
    except KeyError as error:
        raise UsageError(f"The environment lacks {error}.", remedy="Apply the manifests as they are.") from error
    reporter = Reporter(InCluster(), name, namespace)
    if alone:
        reporter.alone()
    else:
        reporter.run()


if __name__ == "__main__":
    sys.exit(main())
