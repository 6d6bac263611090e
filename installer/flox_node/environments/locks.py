"""Locks between processes, released by the kernel when their holder dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from flox_node.atomic import locked
from flox_node.environments.deadline import Deadline


@contextlib.contextmanager
def hold(folder: str, name: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock `name` for the body.

    Raises:
        DeadlineError: somebody else held it until then.
    """
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with locked(f"{folder}/{name}.lock", left=deadline.left):
        yield
