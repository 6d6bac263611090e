"""The bed's cache: artefacts prepared once, outside the source tree, found again by the digest of their recipe.

A preparation works in a staging folder under a lock and renames the folder when it is whole. Killed at any point it
leaves no half artefact: the kernel drops the lock and the next preparation empties the staging folder first.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flox_node.host.trees import remove_tree

_DIGEST = re.compile("[0-9a-f]{12}")
_in_use: list[int] = []  # descriptors that hold the locks of what this process uses


def folder() -> Path:
    """The cache's folder: `FLOX_NODE_BED`, else `flox-node-bed` in the user's cache folder."""
    configured = os.environ.get("FLOX_NODE_BED")
    if configured:
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flox-node-bed"


def artefact(name: str, recipe: object, build: Callable[[Path], None]) -> Path:
    """The folder of the artefact `name`, built by `build(staging folder)` unless one of this `recipe` (JSON) exists."""
    final = _final(name, recipe)
    if final.is_dir():
        return final
    with locked(f"artefact-{name}"):
        if final.is_dir():  # another process built it while this one waited
            return final
        staging = folder() / "staging" / name
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with progress(name):
            build(staging)
        final.parent.mkdir(exist_ok=True)
        staging.rename(final)
    return final


def newest(name: str, recipe: object, build: Callable[[Path], None], kept: int) -> Path:
    """As `artefact`, for what follows the sources: all but `kept` of the artefacts `name` are removed, oldest first.

    None is removed that a living process has got from here: it is locked until that process ends.
    """
    current = artefact(name, recipe, build)
    _in_use.append(_lock(current, fcntl.LOCK_SH))
    others = [
        path
        for path in current.parent.glob(f"{name}-*")
        if path != current and _DIGEST.fullmatch(path.name[len(name) + 1 :])
    ]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[kept - 1 :]:
        with contextlib.suppress(BlockingIOError):
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
            os.close(lock)
    return current


def exists(name: str, recipe: object) -> bool:
    """Whether `artefact` would have nothing to build."""
    return _final(name, recipe).is_dir()


def _final(name: str, recipe: object) -> Path:
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return folder() / "artefacts" / f"{name}-{digest}"


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache-wide lock `name`; it falls with the process, however that ends."""
    path = folder() / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: waiting for another process")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def progress(step: str) -> Iterator[None]:
    """Say that a step begins that takes long, and how long it took. Steps may lie in each other."""
    started = time.monotonic()
    say(f"{step}: building ...")
    outcome = "failed after"
    try:
        yield
        outcome = "ready in"
    finally:
        say(f"{step}: {outcome} {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"[bed] {text}", file=sys.stderr, flush=True)


def _lock(path: Path, operation: int) -> int:
    """Lock a folder until the descriptor is closed, at the latest when this process ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor
