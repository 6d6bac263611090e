"""Collection: environments that no pod has asked for in a long time lose their root and their entries."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from flox_node.environments import locks, roots, views
from flox_node.environments.closure import hash_part
from flox_node.environments.deadline import Deadline
from flox_node.environments.paths import Paths

_LOCK_WAIT_S = 5.0
_POD = "pod-"


@dataclass(frozen=True)
class Entry:
    """One entry of the index. `used_at` is its last use, in seconds since the epoch; `key` names its root."""

    file: str
    environment: str
    key: str
    used_at: float


def entries(paths: Paths) -> list[Entry]:
    """All entries of the index that can be read."""
    found = []
    try:
        names = sorted(name for name in os.listdir(paths.index) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    for name in names:
        file = f"{paths.index}/{name}"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(file, "rb") as stream:
                entry = json.loads(stream.read())
            key = hash_part(str(entry["store_path"]))
            found.append(Entry(file, str(entry["environment"]), key, os.stat(file).st_mtime))
    return found


def collect(paths: Paths, *, unused_since: float) -> list[str]:
    """Let go of environments last used before `unused_since` (seconds since the epoch); their names.

    An environment stays while another entry with the same content was used since, or while a pod has it.
    """
    found = entries(paths)
    kept = {entry.key for entry in found if entry.used_at >= unused_since} | pods_keys(paths)
    gone = []
    for entry in found:
        if entry.key in kept:
            continue
        with locks.hold(paths.locks, roots.name_of(entry.key), Deadline.after(_LOCK_WAIT_S)):
            if os.stat(entry.file).st_mtime >= unused_since:  # asked for just now
                continue
            os.unlink(entry.file)  # first: nobody is sent to a path that goes
            roots.remove(entry.key, paths)
        gone.append(entry.environment)
    views.sweep(paths)
    return gone


def pods_keys(paths: Paths) -> set[str]:
    """The keys of the environments that pods have."""
    found = set()
    for name in _roots(paths):
        with contextlib.suppress(OSError):
            target = os.readlink(f"{paths.gc_roots}/{name}")
            found.add(hash_part(target))
    return found


def forget_pods(paths: Paths, *, sandboxes: set[str], older_than: float) -> list[str]:
    """Remove the roots of sandboxes that are gone and were made before `older_than` (seconds since the epoch)."""
    gone = []
    for name in _roots(paths):
        root = f"{paths.gc_roots}/{name}"
        with contextlib.suppress(FileNotFoundError):
            if name.removeprefix(_POD) not in sandboxes and os.lstat(root).st_mtime < older_than:
                os.unlink(root)
                gone.append(name.removeprefix(_POD))
    return gone


def _roots(paths: Paths) -> list[str]:
    try:
        return sorted(name for name in os.listdir(paths.gc_roots) if name.startswith(_POD))
    except FileNotFoundError:
        return []
