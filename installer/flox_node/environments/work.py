"""The private folders of running realisations, each named after its environment and guarded by its lock."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager

from flox_node.environments import locks, roots
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import DeadlineError
from flox_node.environments.paths import Paths


def locked(name: str, paths: Paths, deadline: Deadline) -> AbstractContextManager[None]:
    """Be the one who realises the environment `name`, a digest.

    Raises:
        DeadlineError: somebody else is, until then.
    """
    return locks.hold(paths.locks, f"realise-{name}", deadline)


@contextlib.contextmanager
def private_folder(name: str, paths: Paths) -> Iterator[str]:
    """A fresh folder for one realisation, wiped afterwards; what killed ones of this environment left goes first.

    The caller holds the environment's lock.
    """
    import tempfile

    os.makedirs(paths.work, mode=0o700, exist_ok=True)
    for leftover in os.listdir(paths.work):
        if leftover.startswith(f"{name}-"):
            _wipe(f"{paths.work}/{leftover}")
    folder = tempfile.mkdtemp(prefix=f"{name}-", dir=paths.work)
    try:
        yield folder
    finally:
        _wipe(folder)
        roots.forget_dangling(paths)


def sweep(paths: Paths) -> bool:
    """Wipe what killed realisations left and nobody realises again; whether no realisation runs now."""
    try:
        folders = os.listdir(paths.work)
    except FileNotFoundError:
        return True
    idle = True
    for folder in folders:
        try:
            with locked(folder.rpartition("-")[0], paths, Deadline.after(0)):
                _wipe(f"{paths.work}/{folder}")
        except DeadlineError:
            idle = False
    return idle


def _wipe(folder: str) -> None:
    from flox_node.host.children import end_strays

    # Whoever still runs would go on writing; every program of a realisation has this variable (see flox_cli).
    end_strays("TMPDIR", f"{folder}/tmp")
    shutil.rmtree(folder, ignore_errors=True)
