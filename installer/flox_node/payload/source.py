"""Where a payload comes from: one interface for a folder and for an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol

from flox_node.errors import CorruptError
from flox_node.host.trees import Entry, walk
from flox_node.payload import manifest as manifests
from flox_node.payload.manifest import Manifest, PayloadFile, StorePath

Item = StorePath | PayloadFile
Work = Callable[[Item, Iterable[Entry]], None]
_THREADS = 2


class Payload(Protocol):
    """A payload that can be read in one pass."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest, which is whole; the rest is checked while it is read."""
        ...

    def each(self, work: Work, wanted: AbstractSet[str] | None = None) -> None:
        """Call `work` with everything that the manifest names and its tree, in any order, from up to two threads.

        `wanted` limits the store paths to these; a folder then never reads the others.

        Raises:
            CorruptError: something is missing, is there without being named, or cannot be read.
        """
        ...


class FolderPayload:
    """A payload as a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            data = (folder / manifests.NAME).read_bytes()
        except OSError as error:
            raise CorruptError(
                f"{folder} is no payload: {manifests.NAME} cannot be read ({error.strerror})."
            ) from error
        self.manifest = manifests.parse(data)

    def each(self, work: Work, wanted: AbstractSet[str] | None = None) -> None:
        """See `Payload.each`: in two threads, since hashing and writing leave the interpreter alone."""
        from concurrent.futures import ThreadPoolExecutor  # 5 ms, and inspecting needs none of it

        self._check_names()
        paths = [path for path in self.manifest.store_paths if wanted is None or path.path in wanted]
        # The largest first: otherwise one thread may be left with it at the end.
        items: list[Item] = [*sorted(paths, key=lambda path: path.nar_size, reverse=True), *self.manifest.files]
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(lambda item: work(item, self.tree(item)), items):
                pass

    def tree(self, item: Item) -> Iterator[Entry]:
        """The tree of one thing that the manifest names."""
        path = f"store/{item.name}" if isinstance(item, StorePath) else item.path
        return _unreadable_is_corrupt(walk(self._folder / path))

    def _check_names(self) -> None:
        """Nothing is missing and nothing is there that the manifest does not name."""
        expected = layout(self.manifest)
        for folder, names in expected.items():
            here = self._folder / folder
            if not stat.S_ISDIR(_mode(here)):
                raise CorruptError(f"{folder or 'the payload'} is not a folder.")
            found = set(os.listdir(here))
            for name in sorted(names - found):
                raise CorruptError(f"{os.path.join(folder, name)} is missing from the payload.")
            for name in sorted(found - names):
                raise CorruptError(
                    f"{os.path.join(folder, name)} is in the payload, but its manifest does not name it."
                )


def layout(manifest: Manifest) -> dict[str, set[str]]:
    """The names that each folder of a payload holds, down to the store paths. "" is the payload itself."""
    folders: dict[str, set[str]] = {"": {manifests.NAME}, "store": set()}
    paths = [file.path for file in manifest.files] + [f"store/{path.name}" for path in manifest.store_paths]
    for path in [*paths, "store"]:
        while path:
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, set()).add(name)
            path = folder
    return folders


def _mode(path: Path) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _unreadable_is_corrupt(entries: Iterator[Entry]) -> Iterator[Entry]:
    try:
        yield from entries
    except OSError as error:
        raise CorruptError(f"The payload cannot be read: {error}.") from error
