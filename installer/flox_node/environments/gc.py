"""Garbage collection of environments: which of them lose their root and their entries, and what nobody knows of.

It only lets go. Nix then removes what is rooted no more.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flox_node.environments import locks, roots, views, work
from flox_node.environments.closure import hash_part
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import DeadlineError
from flox_node.environments.paths import Paths

_LOCK_WAIT_S = 5.0
_POD = "pod-"
_LOCKS = ("env-", "view-", "realise-", "fetch-", "start-")  # one each for everything that was ever asked for
_ENVIRONMENT = "env-"


@dataclass(frozen=True)
class Entry:
    """One entry of the index. `used_at` is its last use, in seconds since the epoch; `key` names its root."""

    file: str
    environment: str
    mode: str
    store_path: str
    used_at: float

    @property
    def key(self) -> str:
        """The name of its root."""
        return hash_part(self.store_path)


@dataclass(frozen=True)
class Weight:
    """What something takes, or has, on a file system. `inodes` is endless where the file system does not count them."""

    bytes: float
    inodes: float

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.bytes + other.bytes, self.inodes + other.inodes)

    def covers(self, need: Weight) -> bool:
        """Whether it is at least as much, of both."""
        return self.bytes >= need.bytes and self.inodes >= need.inodes


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
            environment, mode, store_path = (str(entry[field]) for field in ("environment", "mode", "store_path"))
            found.append(Entry(file, environment, mode, store_path, os.stat(file).st_mtime))
    return found


def in_order(found: Sequence[Entry]) -> list[str]:
    """The keys of these entries, in the order in which they may go when room is needed.

    First what an environment was before: all but what was asked for last under its name and mode. Then by last use.
    """
    newest: dict[tuple[str, str], Entry] = {}
    used_at: dict[str, float] = {}
    for entry in found:
        name = (entry.environment, entry.mode)
        newest[name] = max(newest.get(name, entry), entry, key=lambda each: each.used_at)
        used_at[entry.key] = max(used_at.get(entry.key, entry.used_at), entry.used_at)
    current = {entry.key for entry in newest.values()}
    return sorted(used_at, key=lambda key: (key in current, used_at[key], key))


def unused(paths: Paths, *, since: float) -> list[str]:
    """The keys that nobody asked for since then (seconds since the epoch) and no pod has.

    An environment stays while another entry with the same content was used since.
    """
    found = entries(paths)
    kept = {entry.key for entry in found if entry.used_at >= since} | set(pods_environments(paths))
    return [key for key in in_order(found) if key not in kept]


def enough(
    paths: Paths,
    need: Weight,
    *,
    since: float,
    closure: Callable[[str], Iterable[str]],
    weigh: Callable[[str], Weight],
) -> list[str]:
    """The first keys that have to go so that at least `need` is freed; all that may go if that is less.

    What was asked for since then (seconds since the epoch) stays, and what a pod has.

    `closure` gives a store path's closure, `weigh` what one store path takes. What several environments have is freed
    with the last of them.
    """
    found = entries(paths)
    pods = pods_environments(paths)
    kept = {entry.key for entry in found if entry.used_at >= since} | set(pods)
    held = {entry.key: entry.store_path for entry in found} | pods
    closures = {key: frozenset(closure(store_path)) for key, store_path in held.items()}
    holders = Counter(path for closed in closures.values() for path in closed)
    chosen: list[str] = []
    freed = Weight(0, 0)
    for key in in_order(found):
        if freed.covers(need):
            break
        if key in kept:
            continue
        chosen.append(key)
        for path in closures[key]:
            holders[path] -= 1
            if not holders[path]:
                freed += weigh(path)
    return chosen


def let_go(keys: Iterable[str], paths: Paths, *, unused_since: float) -> list[str]:
    """Let go of the environments of these keys that were not asked for since (seconds since the epoch); their names."""
    gone = []
    by_key: dict[str, list[Entry]] = {}
    for entry in entries(paths):
        by_key.setdefault(entry.key, []).append(entry)
    for key in keys:
        with _locked(key, paths) as locked:
            asked_for = by_key.get(key, [])
            is_used = any(_used_at(entry.file) >= unused_since for entry in asked_for) or key in pods_environments(
                paths
            )
            if is_used or not locked:
                continue
            for entry in asked_for:  # first: nobody is sent to a path that goes
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.file)
            roots.remove(key, paths)
        gone += [entry.environment for entry in asked_for]
    return list(dict.fromkeys(gone))


def forget_strays(paths: Paths) -> int:
    """Remove what a killed or failed realisation left: roots that no entry names, links into private folders; how many.

    A realisation holds its root's lock until its entry is there.
    """
    known = {entry.key for entry in entries(paths)}
    gone = 0
    for name in _roots(_ENVIRONMENT, paths) + _roots(f".{_ENVIRONMENT}", paths):
        key = name.lstrip(".").removeprefix(_ENVIRONMENT).removesuffix(".flox-node.tmp")
        if key in known and not name.startswith("."):
            continue
        with _locked(key, paths) as locked:
            if locked and (name.startswith(".") or key not in {entry.key for entry in entries(paths)}):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{paths.gc_roots}/{name}")
                gone += 1
    for name in roots.fetches(paths):
        with contextlib.suppress(DeadlineError), work.locked(name, paths, Deadline.after(0)):
            roots.release(name, paths)
            gone += 1
    views.sweep(paths)
    locks.sweep(paths.locks, _LOCKS)
    return gone + roots.forget_dangling(paths)


def pods_environments(paths: Paths) -> dict[str, str]:
    """The environments that pods have: store paths by their keys."""
    found = {}
    for name in _roots(_POD, paths):
        with contextlib.suppress(OSError):
            store_path = os.readlink(f"{paths.gc_roots}/{name}")
            found[hash_part(store_path)] = store_path
    return found


def forget_pods(paths: Paths, *, sandboxes: set[str], older_than: float) -> list[str]:
    """Remove the roots of sandboxes that are gone and were made before `older_than` (seconds since the epoch)."""
    gone = []
    for name in _roots(_POD, paths):
        root = f"{paths.gc_roots}/{name}"
        with contextlib.suppress(FileNotFoundError):
            if name.removeprefix(_POD) not in sandboxes and os.lstat(root).st_mtime < older_than:
                os.unlink(root)
                gone.append(name.removeprefix(_POD))
    return gone


@contextlib.contextmanager
def _locked(key: str, paths: Paths) -> Iterator[bool]:
    """Hold a root's lock for the body, which is told whether it does: who realises it now needs it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locks.hold(paths.locks, roots.name_of(key), Deadline.after(_LOCK_WAIT_S)))
        except DeadlineError:
            yield False
        else:
            yield True


def _used_at(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except FileNotFoundError:
        return 0.0


def _roots(prefix: str, paths: Paths) -> list[str]:
    try:
        return sorted(name for name in os.listdir(paths.gc_roots) if name.startswith(prefix))
    except FileNotFoundError:
        return []
