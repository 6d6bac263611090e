"""`flox-node-realise`: read one request from stdin, print one answer; exit 0 when the environment is ready.

This process stands between the kubelet and a pod, so it imports as little as it can: no command line library, no HTTP
library, and nothing of a realisation when the index has the answer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from flox_node.environments import events, protocol, tokens
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import DeadlineError
from flox_node.environments.paths import Paths
from flox_node.environments.resolve import resolve
from flox_node.errors import FloxNodeError
from flox_node.state import policy

_MARGIN_S = 3.0  # the shim ends us at the policy's limit: our own text must be out before


def realise_main() -> NoReturn:
    """Answer the request on stdin; as `--fetch KEY`, be the fetch of that key."""
    os.umask(0o022)  # roots and locks are no secret
    signal.signal(signal.SIGTERM, _stop)
    if sys.argv[1:2] == ["--fetch"]:
        from flox_node.environments import fetch

        fetch.run(sys.argv[2], Paths())
        sys.exit(0)
    answer = _answer(sys.stdin.buffer.read(protocol.LARGEST_REQUEST + 1), Paths())
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # All is closed and written: taking the interpreter apart would cost the pod as long as the hub's answer did.
    os._exit(0 if answer["ok"] else 1)


def _answer(data: bytes, paths: Paths) -> dict[str, object]:
    request = None
    try:
        request = protocol.Request.parse(data)
        rules = policy.parse(_read_optional(paths.policy))
        seconds = max(1.0, rules.realise.wait_s - _MARGIN_S)
        # A backstop below all the deadlines: whatever hangs here, the pod gets its answer.
        signal.signal(signal.SIGALRM, _too_late)
        signal.setitimer(signal.ITIMER_REAL, seconds + 1.0)
        try:
            token = tokens.find(request.pod_uid, paths, rules.kubelet_root)
            resolved = resolve(request, Access(rules, paths, token), Deadline.after(seconds))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        made = resolved.resolution
        _log(request, paths, generation=made.generation, store_path=made.store_path, phases=resolved.phases)
        return protocol.success(made, resolved.warning)
    except FloxNodeError as error:
        # The shim tells the whole of it, with the pod's name.
        _log(request, paths, level="warning", code=error.code)
        return protocol.failure(error, str(request.reference) if request else None)
    except Exception as error:  # the shim needs an answer, and the node's log the traceback
        import traceback

        traceback.print_exc()
        return protocol.failure(error, str(request.reference) if request else None)


def _log(request: protocol.Request | None, paths: Paths, level: str = "info", **fields: object) -> None:
    if request is not None:
        asked = {"environment": request.reference.environment, "generation": request.reference.generation}
        events.log("resolve", paths, level=level, namespace=request.namespace, **{**asked, **fields})


def _read_optional(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _stop(number: int, _: FrameType | None) -> NoReturn:
    # Leave through every `finally`: programs are ended, the private folder is wiped.
    sys.exit(128 + number)


def _too_late(_number: int, _: FrameType | None) -> NoReturn:
    raise DeadlineError("the environment was not there in time.")


if __name__ == "__main__":
    realise_main()
