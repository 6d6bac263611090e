"""Noticing changes: inotify on folders, and fingerprints of single paths. Costs nothing while nothing happens."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from flox_node.host.files import HostFiles

# <sys/inotify.h>
_IN_ATTRIB, _IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_CHANGES = _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_ONLY_DIRECTORIES = 0x01000000

Fingerprint = tuple[int, ...]


class FolderWatch:
    """Tells when something in one of its folders was made, written, renamed, removed, or got other attributes."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folders: dict[str, int] = {}

    def fileno(self) -> int:
        """What a selector waits for."""
        return int(self._descriptor)

    def follow(self, folders: Iterable[str]) -> None:
        """Watch exactly these folders (paths of our own namespace); one that is not there is left out."""
        wanted = set(folders)
        for folder in self._folders.keys() - wanted:
            self._libc.inotify_rm_watch(self._descriptor, self._folders.pop(folder))
        for folder in wanted:
            # Adding a watched folder again is free, and needed where it was replaced meanwhile.
            watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _CHANGES | _ONLY_DIRECTORIES)
            if watch >= 0:
                self._folders[folder] = watch
            else:
                self._folders.pop(folder, None)

    def drain(self) -> None:
        """Forget what has happened so far."""
        try:
            while os.read(self._descriptor, 1 << 16):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fingerprint(files: HostFiles, path: str) -> Fingerprint:
    """Size, times and inode of a path itself, or nothing where nothing is; of `/proc/PID` when the process was started.

    It changes when the path is replaced, written or removed, and costs one system call or two. Two contents may share
    one only if somebody sets the times back: `doctor --deep` looks at the bytes.
    """
    if path.startswith("/proc/"):
        return _process(files, path)
    status = files.lstat(path)
    if status is None:
        return ()
    if stat.S_ISDIR(status.st_mode):
        return (status.st_ino,)  # the times of a folder change with what others put into it
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _process(files: HostFiles, path: str) -> Fingerprint:
    try:
        with open(files.real(f"{path}/stat"), "rb") as file:
            return (int(file.read().rpartition(b")")[2].split()[19]),)
    except (OSError, IndexError, ValueError):
        return ()
