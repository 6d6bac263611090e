"""The Nix archive format (NAR), as far as a hash needs it: the hash that names a store path's content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from flox_node.host.trees import Data, Entry, feed


class NarHasher:
    """A sink that hashes a tree as Nix does. `nar_hash` and `nar_size` hold once the tree is finished.

    A NAR is a nest of length-prefixed strings, padded to eight bytes. Modes count only as executable or not; times and
    owners do not count.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._open_folders: list[tuple[str, ...]] = []
        self._in_file = False
        self._padding = b""
        self.nar_size = 0
        self._write(_MAGIC)

    @property
    def nar_hash(self) -> str:
        """The hash as "sha256:<hex>"."""
        return "sha256:" + self._sha256.hexdigest()

    def start(self, entry: Entry) -> None:
        """See `Sink.start`."""
        self._end_file()
        self._end_folders(entry.path)
        if entry.path:
            self._write(_ENTRY_NAME + _string(entry.path[-1]) + _ENTRY_NODE)
        if entry.kind == "directory":
            self._write(_DIRECTORY)
            self._open_folders.append(entry.path)
        elif entry.kind == "symlink":
            self._write(_SYMLINK + _string(entry.target))
            self._end_node(entry.path)
        else:
            self._write((_EXECUTABLE if entry.executable else _REGULAR) + entry.size.to_bytes(8, "little"))
            self._padding = bytes(-entry.size % 8)
            self._in_file = True
            self._path = entry.path

    def data(self, chunk: Data) -> None:
        """See `Sink.data`."""
        self._write(chunk)

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._end_file()
        self._end_folders(None)

    def _write(self, data: Data) -> None:
        self._sha256.update(data)
        self.nar_size += len(data)

    def _end_file(self) -> None:
        if self._in_file:
            self._write(self._padding)
            self._end_node(self._path)
            self._in_file = False

    def _end_folders(self, path: tuple[str, ...] | None) -> None:
        while self._open_folders:
            folder = self._open_folders[-1]
            if path is not None and path[: len(folder)] == folder:
                return
            self._end_node(self._open_folders.pop())

    def _end_node(self, path: tuple[str, ...]) -> None:
        self._write(_END_OF_ENTRY if path else _END)


def nar_of(entries: Iterable[Entry]) -> NarHasher:
    """The hash of a tree, for example of `host.trees.walk(folder)`."""
    hasher = NarHasher()
    feed(entries, hasher)
    return hasher


def _string(text: str) -> bytes:
    data = os.fsencode(text)
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def _strings(*texts: str) -> bytes:
    return b"".join(map(_string, texts))


_MAGIC = _strings("nix-archive-1", "(")
_END = _strings(")")
_END_OF_ENTRY = _strings(")", ")")
_ENTRY_NAME = _strings("entry", "(", "name")
_ENTRY_NODE = _strings("node", "(")
_DIRECTORY = _strings("type", "directory")
_SYMLINK = _strings("type", "symlink", "target")
_REGULAR = _strings("type", "regular", "contents")
_EXECUTABLE = _strings("type", "regular", "executable", "", "contents")
