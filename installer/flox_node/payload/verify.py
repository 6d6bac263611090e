"""Checking a payload against its manifest, bit by bit, in the pass that also copies it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from flox_node.errors import CorruptError
from flox_node.host.trees import Data, Entry, Sink, feed
from flox_node.payload.manifest import Manifest, PayloadFile, StorePath
from flox_node.payload.nar import NarHasher
from flox_node.payload.source import Item, Payload

_STORE_MODES = {"directory": (0o555,), "file": (0o444, 0o555), "symlink": (0o777,)}

Receiver = Callable[[Item], AbstractContextManager[Sink | None]]


def verify(payload: Payload) -> Manifest:
    """Read the whole payload and compare every bit of it with the manifest.

    Raises:
        CorruptError: naming a thing that is damaged, missing or too much.
    """
    receive(payload, lambda _item: nullcontext())
    return payload.manifest


def receive(payload: Payload, receiver: Receiver, wanted: AbstractSet[str] | None = None) -> None:
    """Read a payload once, checking all of it (of the store paths those in `wanted`) and giving it to sinks.

    A sink has everything before it is known whether it is whole: what it wrote counts only once this returns. Sinks of
    different things may be used by two threads at once.

    Raises:
        CorruptError: naming a thing that is damaged, missing or too much.
    """

    def receive_one(item: Item, entries: Iterable[Entry]) -> None:
        with receiver(item) as sink:
            sinks = () if sink is None else (sink,)
            if isinstance(item, StorePath):
                _receive_store_path(item, entries, sinks)
            else:
                _receive_file(item, entries, sinks)

    payload.each(receive_one, wanted)


def _receive_store_path(path: StorePath, entries: Iterable[Entry], sinks: tuple[Sink, ...]) -> None:
    hasher = NarHasher()
    feed(_in_store_form(path, entries), hasher, *sinks)
    if (hasher.nar_size, hasher.nar_hash) != (path.nar_size, path.nar_hash):
        raise _damaged(path.path, f"its content has NAR hash {hasher.nar_hash}, the manifest says {path.nar_hash}")


def _receive_file(file: PayloadFile, entries: Iterable[Entry], sinks: tuple[Sink, ...]) -> None:
    hasher = _FileHasher(file)
    feed(entries, hasher, *sinks)
    if hasher.sha256.hexdigest() != file.sha256:
        raise _damaged(
            file.path, f"its content has SHA-256 {hasher.sha256.hexdigest()}, the manifest says {file.sha256}"
        )


def _in_store_form(path: StorePath, entries: Iterable[Entry]) -> Iterator[Entry]:
    # The hash does not see all of a mode, a link that climbs out of the store is never legitimate, and what is larger
    # than the manifest says must not fill the disk before its hash is known.
    size = 0
    for entry in entries:
        size += entry.size
        if size > path.nar_size:
            raise _damaged(path.path, "it is larger than the manifest says")
        if entry.mode not in _STORE_MODES[entry.kind]:
            raise _damaged(path.path, f"{'/'.join(entry.path) or 'its root'} has mode {entry.mode:04o}")
        if entry.kind == "symlink" and _climbs_out(entry):
            raise _damaged(path.path, f"{'/'.join(entry.path)} leads out of the store ({entry.target})")
        yield entry


def _climbs_out(entry: Entry) -> bool:
    if entry.target.startswith("/"):
        return False
    depth = len(entry.path)  # the link's folder as seen from /nix/store; a store path's root lies at 1
    for part in entry.target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return True
    return False


@dataclass
class _FileHasher:
    """The digest of one plain file, and that it is one."""

    file: PayloadFile

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def start(self, entry: Entry) -> None:
        if entry.kind != "file" or entry.path:
            raise _damaged(self.file.path, f"it is a {entry.kind}")
        if entry.mode != self.file.mode:
            raise _damaged(self.file.path, f"it has mode {entry.mode:04o}, the manifest says {self.file.mode:04o}")
        if entry.size != self.file.size:
            raise _damaged(self.file.path, f"it has {entry.size} bytes, the manifest says {self.file.size}")

    def data(self, chunk: Data) -> None:
        self.sha256.update(chunk)

    def finish(self) -> None:
        pass


def _damaged(name: str, how: str) -> CorruptError:
    return CorruptError(f"{name} is damaged: {how}.")
