"""Locks between processes, released by the kernel when their holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from flox_node.atomic import HeldError, locked
from flox_node.environments.deadline import Deadline


def is_held(folder: str, name: str) -> bool:
    """Whether somebody holds the lock `name`. The look itself keeps nobody from taking it."""
    try:
        descriptor = os.open(f"{folder}/{name}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sweep(folder: str, prefixes: tuple[str, ...]) -> None:
    """Remove the files of the locks with these prefixes that nobody holds."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(prefixes) and name.endswith(".lock")]
    except FileNotFoundError:
        return
    for name in names:
        path = f"{folder}/{name}"
        with contextlib.suppress(HeldError, FileNotFoundError), locked(path, flags=os.O_RDWR):
            os.unlink(path)


@contextlib.contextmanager
def hold(folder: str, name: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock `name` for the body.

    Raises:
        DeadlineError: somebody else held it until then.
    """
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with locked(f"{folder}/{name}.lock", left=deadline.left):
        yield
