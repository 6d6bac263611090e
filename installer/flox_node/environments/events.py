"""The node's log of the handler, `/var/log/flox-node/runtime.jsonl`: one line an event, from the shim and from here.

Fields: docs/reference.md. Never a token, never an environment variable's value.
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from typing import Any

from flox_node import lines
from flox_node.environments.paths import Paths

_LARGEST = 8 << 20  # bytes, as the shim has it


def log(event: str, paths: Paths, *, level: str = "info", **fields: Any) -> None:
    """Append a line, as well as it can be done: a full disk stops nothing. Fields that are None are left out."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    entry = {"time": now, "level": level, "event": event}
    entry |= {name: value for name, value in fields.items() if value is not None}
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(paths.log), mode=0o755, exist_ok=True)
        lines.append(paths.log, json.dumps(entry, ensure_ascii=False).encode(), limit=_LARGEST)
