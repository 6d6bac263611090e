"""Where a payload comes from: one interface for a folder and for an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol

from flox_node.errors import CorruptError
from flox_node.host.trees import Entry, walk
from flox_node.payload import manifest as manifests
from flox_node.payload.manifest import Manifest, PayloadFile, StorePath

Item = StorePath | PayloadFile


class Payload(Protocol):
    """A payload that can be read in one pass."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest, which is whole; the rest is checked while it is read."""
        ...

    def items(self, wanted: AbstractSet[str] | None = None) -> Iterator[tuple[Item, Iterable[Entry]]]:
        """What the manifest names, each with its tree, in the manifest's order: files first, then store paths.

        `wanted` limits the store paths to these; a folder then never reads the others. Each tree must be read before
        the next item is asked for.

        Raises:
            CorruptError: something is missing, is there without being named, or is not what it should be.
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

    def items(self, wanted: AbstractSet[str] | None = None) -> Iterator[tuple[Item, Iterable[Entry]]]:
        """See `Payload.items`."""
        self._check_names()
        for file in self.manifest.files:
            yield file, _unreadable_is_corrupt(walk(self._folder / file.path))
        for path in self.manifest.store_paths:
            if wanted is None or path.path in wanted:
                yield path, _unreadable_is_corrupt(walk(self._folder / "store" / path.name))

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
