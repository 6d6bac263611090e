"""What the node has to say to a pod that has no container which could: its environment is still being fetched, its
environment's hook failed, the hub that has it cannot be asked. One file a pod in `/run/flox-node/notices`, written by
the handler and read by the pod of the DaemonSet, which makes an event of it. The shim writes the same
(shim/internal/records).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from dataclasses import asdict, dataclass
from typing import Any

from flox_node import atomic
from flox_node.environments.paths import Paths

SCHEMA_VERSION = 1
FETCHING, HOOK_FAILED, HUB_UNREACHABLE = KINDS = "fetching", "hook-failed", "hub-unreachable"
EVERY_S = 30.0
"""A pod whose environment is being fetched is told no more often."""
_RECENT_S = 600.0
_KEPT_S = 3600.0
_MOST = 32
_LARGEST = 1 << 13
_LONGEST = 1000
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BLANKS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Notice:
    """One thing to tell a pod. kind: one of KINDS; at_ms: when it was so, in milliseconds of the epoch."""

    namespace: str
    pod: str
    uid: str
    kind: str
    message: str
    at_ms: int

    @property
    def id(self) -> str:
        """No other notice has it."""
        return f"{self.uid}.{self.at_ms:x}"

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Notice:
        """Parse one; ValueError, TypeError or KeyError where it is none."""
        namespace, pod, uid, kind = (str(body[name]) for name in ("namespace", "pod", "uid", "kind"))
        if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(pod) and _UID.fullmatch(uid)):
            raise ValueError("It names no pod.")
        if kind not in KINDS:
            raise ValueError(f"{kind[:40]!a} is no kind of notice.")
        return cls(
            namespace, pod, uid, kind, _BLANKS.sub(" ", str(body["message"])).strip()[:_LONGEST], int(body["at_ms"])
        )


def tell(namespace: str, pod: str, uid: str, kind: str, message: str, paths: Paths) -> None:
    """Tell a pod something; how far its fetch is, only when it was told nothing for `EVERY_S`, by whichever try."""
    file = f"{paths.notices}/{uid}.json"
    with contextlib.suppress(OSError):
        if kind == FETCHING and time.time() - os.stat(file).st_mtime < EVERY_S:
            return
    notice = {"namespace": namespace, "pod": pod, "uid": uid, "kind": kind, "message": message}
    with contextlib.suppress(OSError, ValueError):  # pods that no kubelet made have any name; a full /run stops nothing
        parsed = Notice.from_json({**notice, "at_ms": time.time_ns() // 1_000_000})
        os.makedirs(paths.notices, mode=0o700, exist_ok=True)
        atomic.write(file, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(parsed)}).encode(), durable=False)
        sweep(paths)


def recent(paths: Paths) -> list[Notice]:
    """The newest notices of the last minutes, the oldest first; what is none is left out."""
    found: list[Notice] = []
    for path, age in _files(paths):
        if -_RECENT_S < age < _RECENT_S:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found.append(_read(path))
    return sorted(found, key=lambda notice: (notice.at_ms, notice.uid))[-_MOST:]


def sweep(paths: Paths) -> None:
    """Remove what nobody reads any more."""
    for path, age in _files(paths):
        if age > _KEPT_S:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _files(paths: Paths) -> list[tuple[str, float]]:
    now, found = time.time(), []
    with contextlib.suppress(FileNotFoundError), os.scandir(paths.notices) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found.append((entry.path, now - entry.stat(follow_symlinks=False).st_mtime))
    return found


def _read(path: str) -> Notice:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("It is no file.")
        body = json.loads(file.read(_LARGEST))
    if not isinstance(body, dict):
        raise TypeError("It is no object.")
    return Notice.from_json(body)
