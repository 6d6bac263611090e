"""The bed's cache: artefacts prepared once, outside the source tree, found again by the digest of their recipe.

A preparation works in a staging folder under a lock and renames the folder when it is whole. Killed at any point it
leaves no half artefact: the kernel drops the lock and the next preparation empties the staging folder first.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


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
