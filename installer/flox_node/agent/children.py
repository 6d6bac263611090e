"""The work is done by processes that end: the same commands that a person would run on the node."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flox_node.host.children import run_group

_OUTPUT_LIMIT = 1 << 20


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code and the JSON object that it printed last (empty where it printed none)."""

    code: int
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """The stable word of the error ("refused", "rolled-back", ...); "" after a success."""
        return str(self.body.get("error") or ("bug" if self.code else ""))

    @property
    def message(self) -> str:
        """Cause and remedy in one text."""
        said = [str(self.body.get(name) or "") for name in ("cause", "remedy")]
        return " ".join(filter(None, said)) or f"The command ended with {self.code} and told nothing."


Run = Callable[[Sequence[str], float], Ended]


def run(argv: Sequence[str], timeout: float) -> Ended:
    """Run `python -m MODULE ...` (argv without the first two words). What it says on stderr goes to the pod's log.

    After `timeout` seconds it is ended; what it leaves half done on the node undoes itself.
    """
    # In the pod the ConfigMap is all that is chosen: a look and a run must come to the same.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOX_NODE_")}
    ended = run_group([sys.executable, "-m", *argv], env=environment, timeout=timeout, limit=_OUTPUT_LIMIT)
    sys.stderr.write(ended.stderr.decode(errors="replace"))
    sys.stderr.flush()
    if ended.timed_out:
        return Ended(9, {"error": "outside", "cause": f"{argv[1]} did not end within {timeout:.0f} s."})
    body = _last_object(ended.stdout)
    if ended.returncode:
        print(f"{argv[1]}: {body.get('cause') or f'ended with {ended.returncode}'}", file=sys.stderr, flush=True)
    return Ended(ended.returncode, body)


def _last_object(output: bytes) -> dict[str, Any]:
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError):
            body = json.loads(line)
            if isinstance(body, dict):
                return body
    return {}
