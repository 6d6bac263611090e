"""Views: a folder that holds one environment's closure and nothing else, as hard links into the store.

A container gets it as /nix with one mount, sees no package of anybody else, and no byte is copied. Hard links need one
mount, so the views lie beside the store. The view is named after the environment's store path: equal content, one view.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable

from flox_node.environments.paths import Paths

_STORE_MTIME = 1  # seconds, what Nix gives all files of a store


def exists(key: str, paths: Paths) -> bool:
    """Whether the view is complete: its name appears only when it is."""
    return os.path.isdir(f"{paths.views}/{key}/store")


def make(key: str, closure: Iterable[str], paths: Paths) -> None:
    """Make the view `key` of these store paths, if it is not there. Needs the view's lock.

    What a killed run left is swept; a view under its final name is whole and is never touched again.
    """
    if exists(key, paths):
        return
    os.makedirs(paths.views, mode=0o755, exist_ok=True)
    building = f"{paths.views}/.{key}.tmp"
    _remove(building)
    os.makedirs(f"{building}/store", mode=0o755)
    for path in closure:
        _link_tree(paths.on_disk(path), f"{building}/store/{path.rpartition('/')[2]}")
    os.rename(building, f"{paths.views}/{key}")


def remove(key: str, paths: Paths) -> None:
    """Remove a view; its name goes first, so that nobody takes a half of it. Needs the view's lock."""
    leaving = f"{paths.views}/.{key}.tmp"
    _remove(leaving)
    try:
        os.rename(f"{paths.views}/{key}", leaving)
    except FileNotFoundError:
        return
    _remove(leaving)


def _link_tree(source: str, target: str) -> None:
    if os.path.isdir(source) and not os.path.islink(source):
        os.mkdir(target, 0o755)
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _link_tree(entry.path, f"{target}/{entry.name}")
                else:
                    _link(entry.path, f"{target}/{entry.name}")
        os.chmod(target, 0o555)
        os.utime(target, (_STORE_MTIME, _STORE_MTIME))
    else:
        _link(source, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        # A file may have only so many names (65,000 on ext4; Nix' own optimiser can use them up): then it is copied.
        if error.errno != errno.EMLINK:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _remove(folder: str) -> None:
    if not os.path.lexists(folder):
        return
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder)
