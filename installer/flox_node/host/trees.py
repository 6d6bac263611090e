"""Whole file trees: walked in the order of a Nix archive, written in the form of a Nix store, made durable.

A tree is a stream of `Entry`, so a folder, an archive and a store path are read, checked and written by the same code
in one pass and with little memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

CHUNK = 1 << 18  # bytes; large enough to be cheap, small enough to stay in the processor's cache
_FLUSH_INTERVAL_S = 0.2
STORE_MTIME = 1  # seconds; what Nix gives every file of a store

Kind = Literal["directory", "file", "symlink"]
Data = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a tree. `path` holds the names below the tree's root; the root itself is ().

    `chunks` gives a file's bytes once and in order; a chunk is valid only until the next one is asked for.
    """

    path: tuple[str, ...]
    kind: Kind
    mode: int
    size: int = 0
    target: str = ""
    chunks: Callable[[], Iterable[Data]] = tuple

    @property
    def executable(self) -> bool:
        """Whether it is a file that may be run."""
        return self.kind == "file" and bool(self.mode & stat.S_IXUSR)


class Sink(Protocol):
    """What receives a tree: a hash, a folder, both."""

    def start(self, entry: Entry) -> None:
        """The next entry, in walking order."""
        ...

    def data(self, chunk: Data) -> None:
        """The next bytes of the file that was started last."""
        ...

    def finish(self) -> None:
        """The tree is complete."""
        ...


def feed(entries: Iterable[Entry], *sinks: Sink) -> None:
    """Give a tree to all sinks, reading every byte once."""
    for entry in entries:
        for sink in sinks:
            sink.start(entry)
        if entry.kind == "file":
            for chunk in entry.chunks():
                for sink in sinks:
                    sink.data(chunk)
    for sink in sinks:
        sink.finish()


def walk(root: Path) -> Iterator[Entry]:
    """The tree at `root`: parents before children, siblings in byte order of their names, no link followed.

    Raises:
        OSError: unreadable, or a device, pipe or socket.
    """
    yield from _walk(os.fspath(root), (), bytearray(CHUNK))


def _walk(real: str, path: tuple[str, ...], buffer: bytearray) -> Iterator[Entry]:
    status = os.lstat(real)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
        yield Entry(path, "file", mode, size=size, chunks=lambda: _read(real, buffer))
    elif stat.S_ISDIR(status.st_mode):
        yield Entry(path, "directory", mode)
        for name in sorted(os.listdir(real), key=os.fsencode):
            yield from _walk(f"{real}/{name}", (*path, name), buffer)
    elif stat.S_ISLNK(status.st_mode):
        yield Entry(path, "symlink", mode, target=os.readlink(real))
    else:
        raise OSError(f"{real} is neither a file nor a folder nor a symlink")


def _read(real: str, buffer: bytearray) -> Iterator[memoryview]:
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        view = memoryview(buffer)
        while count := os.readv(descriptor, [buffer]):
            yield view[:count]
            if count < len(buffer):
                return
    finally:
        os.close(descriptor)


class TreeWriter:
    """A sink that writes a tree in the form of a Nix store: modes 0444 and 0555, mtime 1, ours to own.

    The destination must not exist: what is written is always a whole new tree. Use it as a context manager, so that
    an aborted tree leaves no descriptor open; what it leaves on the disk is the caller's staging folder's to sweep.
    """

    def __init__(self, destination: Path) -> None:
        self._root = os.fspath(destination)
        self._open_folders: list[tuple[str, ...]] = []
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_file(seal=False)

    def start(self, entry: Entry) -> None:
        """See `Sink.start`."""
        self._close_file()
        self._close_folders(entry.path)
        real = self._real(entry.path)
        if entry.kind == "directory":
            os.mkdir(real, 0o755)
            self._open_folders.append(entry.path)
        elif entry.kind == "symlink":
            os.symlink(entry.target, real)
            os.utime(real, (STORE_MTIME, STORE_MTIME), follow_symlinks=False)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(real, flags, 0o600)
            os.fchmod(self._descriptor, 0o555 if entry.executable else 0o444)

    def data(self, chunk: Data) -> None:
        """See `Sink.data`."""
        while chunk:
            chunk = chunk[os.write(self._descriptor, chunk) :]

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._close_file()
        self._close_folders(None)

    def _real(self, path: tuple[str, ...]) -> str:
        return "/".join((self._root, *path))

    def _close_file(self, *, seal: bool = True) -> None:
        if self._descriptor >= 0:
            if seal:
                os.utime(self._descriptor, (STORE_MTIME, STORE_MTIME))
            os.close(self._descriptor)
            self._descriptor = -1

    def _close_folders(self, path: tuple[str, ...] | None) -> None:
        # A folder gets its mode and time when the last thing in it is written; both would change with every child.
        while self._open_folders:
            folder = self._open_folders[-1]
            if path is not None and path[: len(folder)] == folder:
                return
            real = self._real(folder)
            os.chmod(real, 0o555)
            os.utime(real, (STORE_MTIME, STORE_MTIME))
            self._open_folders.pop()


def remove_tree(path: Path) -> None:
    """Remove whatever is at `path`, read-only folders included and no link followed; nothing there is fine."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return
    os.chmod(path, 0o700)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path))
            else:
                os.unlink(entry.path)
    os.rmdir(path)


def sync_file_system(path: Path) -> None:
    """Make everything on the file system that holds `path` durable: one call, however many files were written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_early(path: Path) -> Iterator[None]:
    """While a lot is written to the file system of `path`, have the disk write it already.

    Otherwise all of it waits in memory for `sync_file_system` at the end, and the disk waits for us until then.
    """
    finished = threading.Event()

    def flush() -> None:
        while not finished.wait(_FLUSH_INTERVAL_S):
            with contextlib.suppress(OSError):  # whoever makes it durable in the end hears of it
                sync_file_system(path)

    thread = threading.Thread(target=flush, name="written-early", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def mount_id(path: Path) -> str:
    """Which mount holds `path`: rename and link work only within one, even where two mounts show one file system."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    return next(line.split()[1] for line in lines if line.startswith("mnt_id:"))


_libc = ctypes.CDLL(None, use_errno=True)
