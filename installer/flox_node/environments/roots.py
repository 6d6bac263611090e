"""Roots that keep what is in use from Nix' garbage collector."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from flox_node.atomic import symlink
from flox_node.environments.paths import Paths

_FETCH = "fetch-"


def name_of(key: str) -> str:
    """The name of a cached environment's root."""
    return f"env-{key}"


@contextlib.contextmanager
def added(key: str, store_path: str, paths: Paths) -> Iterator[None]:
    """Root a store path for the body; the root stays, unless the body fails and it was not there before."""
    before = holds(key, store_path, paths)
    add(key, store_path, paths)
    try:
        yield
    except BaseException:
        if not before:
            remove(key, paths)
        raise


def remove(key: str, paths: Paths) -> None:
    """Remove a root, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{paths.gc_roots}/{name_of(key)}")


def add(key: str, store_path: str, paths: Paths) -> None:
    """Root a store path. The link holds the store's own path: Nix ignores a root that leads anywhere else."""
    os.makedirs(paths.gc_roots, mode=0o755, exist_ok=True)
    symlink(f"{paths.gc_roots}/{name_of(key)}", store_path)


def holds(key: str, store_path: str, paths: Paths) -> bool:
    """Whether the root is there and the path with it."""
    try:
        rooted = os.readlink(f"{paths.gc_roots}/{name_of(key)}")
    except OSError:
        return False
    return rooted == store_path and os.path.isdir(paths.on_disk(store_path))


def forget_dangling(paths: Paths) -> int:
    """Remove the links by which Nix remembers what the Flox CLI rooted in private folders that are gone; how many.

    Nix removes them too, but only when it collects garbage.
    """
    private = f"{paths.work.removeprefix(paths.root)}/"
    gone = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(paths.auto_roots) as links:
        for link in links:
            with contextlib.suppress(OSError):
                target = os.readlink(link.path)
                if target.startswith(private) and not os.path.lexists(paths.on_disk(target)):
                    os.unlink(link.path)
                    gone += 1
    return gone


def fetches(paths: Paths) -> list[str]:
    """The names of the realisations that hold store paths, or held some when they were killed."""
    try:
        return [name.removeprefix(_FETCH) for name in os.listdir(paths.gc_roots) if name.startswith(_FETCH)]
    except FileNotFoundError:
        return []


def release(name: str, paths: Paths) -> None:
    """Drop what a realisation held."""
    import shutil  # slow, and a pod whose environment is here needs none of it

    shutil.rmtree(f"{paths.gc_roots}/{_FETCH}{name}", ignore_errors=True)


@contextlib.contextmanager
def hold(name: str, store_paths: Iterable[str], paths: Paths) -> Iterator[None]:
    """Root these store paths, there or not yet, for the body: a garbage collection beside it takes none of them.

    `name` is the realisation's; what a killed one left under it is replaced.
    """
    folder = f"{paths.gc_roots}/{_FETCH}{name}"
    release(name, paths)
    os.makedirs(folder, mode=0o755)
    try:
        for path in store_paths:
            with contextlib.suppress(FileExistsError):
                os.symlink(path, f"{folder}/{path.rpartition('/')[2]}")
        yield
    finally:
        release(name, paths)
