"""Reading the node's log of the handler: one JSON object a line, from the shim and from what it calls.

Two files at most, each of some 8 MiB: the log, and what it was before its last rotation.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from flox_node.host.files import HostFiles

PATH = "/var/log/flox-node/runtime.jsonl"
_LARGEST = 16 << 20  # of one file, whatever has grown it


def tail(files: HostFiles, size: int) -> bytes | None:
    """The last bytes of the log, the older file's included; None where there is no log."""
    current = files.read_end(PATH, size)
    if current is None:
        return None
    older = files.read_end(f"{PATH}.1", size - len(current)) if len(current) < size else None
    return (older or b"") + current


def errors_since(files: HostFiles, moment: float) -> list[dict[str, Any]] | None:
    """The errors since then (seconds since the epoch), as they were written; None where there is no log.

    Both files are looked through to their beginning: a clock may have been put back. Lines that were cut off and events
    without a time are left out.
    """
    if not files.lexists(PATH):
        return None
    found = []
    for path in (f"{PATH}.1", PATH):
        for line in (files.read_end(path, _LARGEST) or b"").splitlines():
            if b'"error"' not in line:
                continue  # twenty times cheaper than to decode it
            with contextlib.suppress(ValueError, TypeError, KeyError):
                event = json.loads(line)
                if event["level"] == "error" and _seconds(event["time"]) >= moment:
                    found.append(event)
    return found


def _seconds(text: str) -> float:
    from datetime import datetime

    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.timestamp()
