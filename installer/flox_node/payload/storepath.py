"""Store paths made without Nix: named after what they are made of, in the form of a store, references found."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from flox_node.host.trees import TreeWriter, feed, walk
from flox_node.payload.manifest import STORE, StorePath
from flox_node.payload.nar import NarHasher

_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"  # Nix' base 32
_HASH_LENGTH = 32


def path_for(name: str, origin: object) -> str:
    """The store path of something called `name`, where `origin` (JSON) is all that its content depends on."""
    digest = hashlib.sha256(json.dumps([name, origin], sort_keys=True).encode()).digest()
    return f"{STORE}{''.join(_ALPHABET[byte % 32] for byte in digest)}-{name}"


def settle(tree: Path, path: str, others: Iterable[str], store: Path) -> StorePath:
    """Copy `tree` into the folder `store` as the store path `path`. It may refer to itself and to `others`."""
    references = _references(tree, {*others, path})
    hasher = NarHasher()
    with TreeWriter(store / path.removeprefix(STORE)) as writer:
        feed(walk(tree), hasher, writer)
    return StorePath(path, hasher.nar_hash, hasher.nar_size, tuple(sorted(references)))


def _references(tree: Path, paths: set[str]) -> set[str]:
    """Which of `paths` the files and links of a tree name, as Nix finds references: by their hash part."""
    by_hash = {path.removeprefix(STORE)[:_HASH_LENGTH].encode(): path for path in paths}
    pattern = re.compile(b"|".join(by_hash))
    found: set[str] = set()
    for entry in walk(tree):
        data = entry.target.encode() if entry.kind == "symlink" else b""
        if entry.kind == "file":
            data = tree.joinpath(*entry.path).read_bytes()
        found.update(by_hash[match] for match in pattern.findall(data))
    return found
