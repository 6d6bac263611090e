"""One line appended to a log that others append to at the same time, in this program and in the shim.

The rules are the shim's (shim/internal/report/file.go): each takes the file's lock, so that a line is there as a whole
or not at all, also when the disk is full, and one of them rotates. One older file is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time

_PATIENCE_S = 0.05  # a writer that is stopped while it holds the log costs the others this long
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def append(path: str, line: bytes, *, limit: int) -> None:
    """Append a line, given without its end. From `limit` bytes on, the file becomes the older one first.

    Raises:
        OSError: it cannot be written, or only a part of it, which is taken back.
    """
    while True:
        descriptor = os.open(path, _FLAGS, 0o640)
        try:
            if _append(descriptor, path, line, limit):
                return
        finally:
            os.close(descriptor)


def _append(descriptor: int, path: str, line: bytes, limit: int) -> bool:
    """Whether that was the end of it: not where the file at the path is another one by now."""
    alone = _lock(descriptor)
    here = os.fstat(descriptor)
    if not stat.S_ISREG(here.st_mode):
        raise OSError(f"{path} is no regular file")
    if alone:
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            return False
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            return False  # somebody rotated
        if here.st_size > limit:
            os.rename(path, f"{path}.1")
            return False
    if here.st_size and os.pread(descriptor, 1, here.st_size - 1) != b"\n":
        line = b"\n" + line  # half a line of somebody who was cut off stays alone
    try:
        written = os.write(descriptor, line + b"\n")
        if written <= len(line):
            raise OSError(f"{path} took {written} bytes of a line")
    except OSError:
        if alone:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, here.st_size)
        raise
    return True


def _lock(descriptor: int) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        else:
            return True
