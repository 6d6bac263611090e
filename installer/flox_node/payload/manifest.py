"""The payload's manifest: what the payload holds, to the last byte, and the id that names it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.errors import CorruptError, RefusedError
from flox_node.names import STORE_PATH

SCHEMA_VERSION = 1
NAME = "manifest.json"
REGISTRATION = "registration"
SHIM = "bin/flox-runtime"
EMPTY_IMAGE = "images/flox-empty.tar"
STORE = "/nix/store/"

_FILE = re.compile(r"[a-z][a-z0-9-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRY_POINT = re.compile(r"[a-z][a-z0-9-]*")
_FILE_MODES = ("0444", "0555")


@dataclass(frozen=True)
class StorePath:
    """A store path of the payload. `nar_hash` is "sha256:<hex>", `nar_size` in bytes; `references` may name itself."""

    path: str
    nar_hash: str
    nar_size: int
    references: tuple[str, ...]

    @property
    def name(self) -> str:
        """The path's last component, "<hash>-<name>"."""
        return self.path.removeprefix(STORE)


@dataclass(frozen=True)
class PayloadFile:
    """A file beside the store paths. `path` is relative to the payload, `sha256` hex, `size` in bytes."""

    path: str
    sha256: str
    size: int
    mode: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. `id` is a digest over all the rest; `version` is that of flox-node."""

    id: str
    version: str
    system: str
    entry_points: Mapping[str, str]
    store_paths: tuple[StorePath, ...]
    files: tuple[PayloadFile, ...]

    @property
    def size(self) -> int:
        """Bytes of the store paths as NARs and of all other files."""
        return sum(path.nar_size for path in self.store_paths) + sum(file.size for file in self.files)

    def roots(self) -> dict[str, str]:
        """The store paths that keep the whole payload alive, by the name of their root.

        Those behind the entry points, and whatever no entry point needs.
        """
        roots = {name: store_path_of(target) for name, target in self.entry_points.items()}
        kept = self.needed_by(*self.entry_points.values())
        for path in self.store_paths:
            if path.path not in kept:
                roots[path.name] = path.path
        return roots

    def needed_by(self, *programs: str) -> set[str]:
        """The store paths of these programs and all that they refer to."""
        tops = (store_path_of(program) for program in programs)
        return closure(tops, {path.path: path.references for path in self.store_paths})


def seal(
    *,
    version: str,
    system: str,
    entry_points: Mapping[str, str],
    store_paths: Iterable[StorePath],
    files: Iterable[PayloadFile],
) -> Manifest:
    """The manifest of a payload with this content, its id computed.

    Raises:
        CorruptError: the content contradicts itself, for example a reference that the payload does not hold.
    """
    manifest = Manifest(
        id="",
        version=version,
        system=system,
        entry_points=dict(sorted(entry_points.items())),
        store_paths=tuple(sorted(store_paths, key=lambda path: path.path)),
        files=tuple(sorted(files, key=lambda file: file.path.split("/"))),
    )
    document = _document(manifest)
    document["id"] = _digest(document)
    return parse(_canonical(document))


def dump(manifest: Manifest) -> bytes:
    """The only bytes that are the manifest: sorted keys, one form for everything."""
    return _canonical(_document(manifest))


def parse(data: bytes) -> Manifest:
    """Read a manifest, believing nothing: its form, its id and its own consistency are checked.

    Raises:
        CorruptError: damaged.
        RefusedError: made by a flox-node whose manifests this one does not know.
    """
    try:
        document = json.loads(data)
        schema_version = document["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptError(f"{NAME} is damaged: it is not a payload's manifest.") from error
    if isinstance(schema_version, int) and schema_version > SCHEMA_VERSION:
        raise RefusedError(
            f"This payload's manifest has version {schema_version}; this flox-node knows up to {SCHEMA_VERSION}.",
            remedy="Use the flox-node that comes with the payload.",
        )
    if data != _canonical(document) or document.get("id") != _digest(document) or schema_version != SCHEMA_VERSION:
        raise CorruptError(f"{NAME} is damaged: its content does not have the digest it names.")
    try:
        manifest = _manifest(document)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CorruptError(f"{NAME} is damaged: {error}.") from error
    _check_consistency(manifest)
    return manifest


def registration(paths: Iterable[StorePath]) -> bytes:
    """What `nix-store --load-db` reads, in the form of `nix-store --dump-db`: no deriver, hashes in hex."""
    lines: list[str] = []
    for path in paths:
        lines += [path.path, path.nar_hash.removeprefix("sha256:"), str(path.nar_size), ""]
        lines += [str(len(path.references)), *path.references]
    return "".join(line + "\n" for line in lines).encode()


def store_path_of(target: str) -> str:
    """The store path that holds a file such as an entry point."""
    return STORE + target.removeprefix(STORE).split("/", 1)[0]


def closure(roots: Iterable[str], references: Mapping[str, Iterable[str]]) -> set[str]:
    """The store paths reachable from `roots`.

    Raises:
        CorruptError: a path is referred to and not known.
    """
    found: set[str] = set()
    todo = list(roots)
    while todo:
        path = todo.pop()
        if path in found:
            continue
        if path not in references:
            raise CorruptError(f"{path} is referred to, but it is not there.")
        found.add(path)
        todo.extend(references[path])
    return found


def _document(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "id": manifest.id,
        "version": manifest.version,
        "system": manifest.system,
        "entry_points": dict(manifest.entry_points),
        "store_paths": [
            {
                "path": path.path,
                "nar_hash": path.nar_hash,
                "nar_size": path.nar_size,
                "references": list(path.references),
            }
            for path in manifest.store_paths
        ],
        "files": [
            {"path": file.path, "sha256": file.sha256, "size": file.size, "mode": f"{file.mode:04o}"}
            for file in manifest.files
        ],
    }


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _digest(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "id"}
    # 128 bits: short enough for a folder's name, long enough that nobody makes a second payload of the same id.
    return hashlib.sha256(_canonical(content)).hexdigest()[:32]


def _manifest(document: dict[str, Any]) -> Manifest:
    return Manifest(
        id=document["id"],
        version=_text(document["version"]),
        system=_text(document["system"]),
        entry_points={_match(_ENTRY_POINT, name): _text(path) for name, path in document["entry_points"].items()},
        store_paths=tuple(
            StorePath(
                path=_match(STORE_PATH, path["path"]),
                nar_hash="sha256:" + _match(_SHA256, path["nar_hash"].removeprefix("sha256:")),
                nar_size=_size(path["nar_size"]),
                references=tuple(_match(STORE_PATH, reference) for reference in path["references"]),
            )
            for path in document["store_paths"]
        ),
        files=tuple(
            PayloadFile(
                path=_match(_FILE, file["path"]),
                sha256=_match(_SHA256, file["sha256"]),
                size=_size(file["size"]),
                mode=_mode(file["mode"]),
            )
            for file in document["files"]
        ),
    )


def _check_consistency(manifest: Manifest) -> None:
    known = {path.path: path.references for path in manifest.store_paths}
    names = [path.path for path in manifest.store_paths]
    files = [file.path.split("/") for file in manifest.files]
    if (
        names != sorted(set(names))
        or files != sorted(files)
        or len({file.path for file in manifest.files}) < len(files)
    ):
        raise CorruptError(f"{NAME} is damaged: it names something twice or out of order.")
    for path in files:
        if path[0] == "store" or path == [NAME]:
            raise CorruptError(f"{NAME} is damaged: {'/'.join(path)} cannot be one of its files.")
    missing = {REGISTRATION, SHIM, EMPTY_IMAGE} - {file.path for file in manifest.files}
    if missing:
        raise CorruptError(f"{NAME} is damaged: it does not name {', '.join(sorted(missing))}.")
    closure(known, known)
    if SHIM.rpartition("/")[2] in manifest.entry_points:
        raise CorruptError(f"{NAME} is damaged: an entry point has the shim's name.")
    for name, target in manifest.entry_points.items():
        inner = target.removeprefix(store_path_of(target)).split("/")
        if store_path_of(target) not in known or ".." in inner or "." in inner:
            raise CorruptError(f"{NAME} is damaged: the entry point {name} ({target}) lies outside the payload.")


def _match(pattern: re.Pattern[str], value: object) -> str:
    if not pattern.fullmatch(_text(value)):
        raise ValueError(f"{value!r} does not have the form it must have")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value


def _mode(value: object) -> int:
    if value not in _FILE_MODES:
        raise ValueError(f"{value!r} is not one of the modes {', '.join(_FILE_MODES)}")
    return int(str(value), 8)
