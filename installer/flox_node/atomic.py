"""Files and links that are replaced as a whole, and locks: the same few lines for every room, and cheap to import.

Files of the node go through `host.HostFiles`, those of environments through `environments.paths`; both end here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator


class HeldError(BlockingIOError):
    """Somebody else holds the lock."""


_POLL_S = 0.05  # fifty waiters cost nothing at this pace, and nobody notices it


@contextlib.contextmanager
def replacing(path: str, *, durable: bool = True) -> Iterator[str]:
    """A temporary path for the body to fill; then that takes the place of `path` in one step, and nothing is left.

    A reader, a crash or a power cut sees the old or the new, nothing between; what the body writes into a file, it has
    to fsync. Two at once must not replace one path: the name is fixed, so what a killed one left is overwritten.
    """
    temporary = temporary_of(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(os.path.dirname(path))


def temporary_of(path: str) -> str:
    """Where `replacing` has the new one until it takes the old one's place."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.flox-node.tmp"


def write(path: str, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file."""
    with replacing(path, durable=durable) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())


def symlink(path: str, target: str, *, durable: bool = True) -> None:
    """Make `path` a symlink to `target`, replacing what is there (not a folder)."""
    with replacing(path, durable=durable) as temporary:
        os.symlink(target, temporary)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str],
    *,
    left: Callable[[], float] = lambda: 0.0,
    shared: bool = False,
    flags: int = os.O_RDWR | os.O_CREAT,
) -> Iterator[int]:
    """Hold the lock of a file for the body, which gets its descriptor; the kernel releases it when the holder dies.

    Only its holder may remove the file: whoever waited for it then locks the new one of its name. `left` says for how
    many seconds somebody else's lock may still be waited for; it may raise instead of coming to nothing.

    Raises:
        HeldError: somebody else held it until then.
    """
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if (seconds := left()) <= 0:
                    raise HeldError(*error.args) from error
                time.sleep(min(_POLL_S, seconds))
                continue
            if _is_at(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_at(path: str | os.PathLike[str], descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
