"""Locks between processes, released by the kernel when their holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from flox_node.environments.deadline import Deadline

_POLL_S = 0.05  # fifty waiters cost nothing at this pace, and a pod does not notice it


@contextlib.contextmanager
def hold(folder: str, name: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock `name` for the body.

    The file stays: removing it would let two holders lock two files of one name.

    Raises:
        DeadlineError: somebody else held it until then.
    """
    os.makedirs(folder, mode=0o755, exist_ok=True)
    descriptor = os.open(f"{folder}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(min(_POLL_S, deadline.left()))
        yield
    finally:
        os.close(descriptor)
