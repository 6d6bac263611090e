"""The software bill of materials of an image that carries a payload: one SPDX 2.3 document."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from flox_node.host.trees import Entry
from flox_node.payload import manifest as manifests
from flox_node.payload.manifest import Manifest, StorePath
from flox_node.payload.source import Item, Payload

_VERSION = re.compile(r"(?P<name>.+?)-(?P<version>\d.*)")  # as Nix tells a name from a version
_GO_MAGIC = b"\xff Go buildinf:"  # of debug/buildinfo: pointer size, flags, and from offset 32 strings with a length
_GO_INLINE, _GO_FLAGS, _GO_STRINGS = 2, 15, 32

Package = dict[str, Any]


def sbom(payload: Payload, *, site_packages: Iterable[Path] = (), base_image: str = "", created: int = 0) -> bytes:
    """The document, as JSON: the payload's store paths, the shim with its Go, Python distributions, the base image.

    `site_packages` are folders with the image's own distributions; the payload's are found in its store paths.
    `created` is in seconds since the epoch. The same input gives the same bytes.

    Raises:
        CorruptError: the payload is damaged.
    """
    manifest = payload.manifest
    content = _read(payload)
    image = _package("Image", "flox-node", manifest.version, "CONTAINER", licenseDeclared="Apache-2.0")
    packages = [image]
    relations = [("SPDXRef-DOCUMENT", "DESCRIBES", image["SPDXID"])]

    def contained(package: Package, by: str = image["SPDXID"]) -> None:
        packages.append(package)
        relations.append((by, "CONTAINS", package["SPDXID"]))

    if base_image:
        packages.append(_base_image(base_image))
        relations.append((image["SPDXID"], "DESCENDANT_OF", packages[-1]["SPDXID"]))
    for path in manifest.store_paths:
        contained(_store_path(path))
        relations += [
            (_store_id(path.path), "DEPENDS_ON", _store_id(other)) for other in path.references if other != path.path
        ]
    shim, go = _shim(manifest, content.shim)
    contained(shim)
    if go:
        packages.append(go)
        relations.append((shim["SPDXID"], "STATIC_LINK", go["SPDXID"]))
    for holder, texts in {image["SPDXID"]: _metadata_files(site_packages), **content.metadata}.items():
        for text in texts:
            contained(_distribution(text), holder)
    return _document(manifest, packages, relations, created)


def go_version(program: bytes) -> str | None:
    """The Go that a program was built with, e.g. "go1.26.8"; None when it does not say."""
    at = program.find(_GO_MAGIC)
    if at < 0 or not program[at + _GO_FLAGS] & _GO_INLINE:
        return None
    start = at + _GO_STRINGS + 1
    return program[start : start + program[start - 1]].decode()


@dataclass
class _Content:
    """What the manifest does not say: the shim's bytes, and Python metadata by the SPDX id of its store path."""

    shim: bytes = b""
    metadata: dict[str, list[str]] = field(default_factory=dict)


def _read(payload: Payload) -> _Content:
    content = _Content()
    lock = threading.Lock()  # a folder is read by two threads

    def look(item: Item, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(item, StorePath) and _is_metadata(entry.path):
                text = b"".join(map(bytes, entry.chunks())).decode()
                with lock:
                    content.metadata.setdefault(_store_id(item.path), []).append(text)
            elif item.path == manifests.SHIM:
                content.shim = b"".join(map(bytes, entry.chunks()))

    payload.each(look)
    return content


def _is_metadata(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[-1] == "METADATA" and path[-2].endswith(".dist-info")


def _metadata_files(folders: Iterable[Path]) -> list[str]:
    return [file.read_text() for folder in folders for file in sorted(folder.glob("*.dist-info/METADATA"))]


def _package(identifier: str, name: str, version: str = "", purpose: str = "LIBRARY", **more: object) -> Package:
    return {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", identifier),
        "name": name,
        **({"versionInfo": version} if version else {}),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": purpose,
        **more,
    }


def _base_image(reference: str) -> Package:
    name, _, digest = reference.partition("@sha256:")
    checksums = {"checksums": [_sha256(digest)]} if digest else {}
    return _package("BaseImage", name, "", "CONTAINER", comment=f"Base image: {reference}", **checksums)


def _store_id(path: str) -> str:
    return f"SPDXRef-Store-{path.removeprefix(manifests.STORE)[:32]}"


def _store_path(path: StorePath) -> Package:
    full = path.name[33:]
    split = _VERSION.fullmatch(full)
    name, version = (split["name"], split["version"]) if split else (full, "")
    return _package(
        _store_id(path.path).removeprefix("SPDXRef-"),
        name,
        version,
        checksums=[_sha256(path.nar_hash.removeprefix("sha256:"))],
        comment=f"{path.path}; the checksum is that of its Nix archive (NAR).",
    )


def _shim(manifest: Manifest, program: bytes) -> tuple[Package, Package | None]:
    digest = next(file.sha256 for file in manifest.files if file.path == manifests.SHIM)
    more: dict[str, object] = {"checksums": [_sha256(digest)], "licenseDeclared": "Apache-2.0"}
    shim = _package("Shim", "flox-runtime", manifest.version, "APPLICATION", **more)
    version = go_version(program)
    if version is None:
        return shim, None
    number = version.removeprefix("go")
    return shim, _package("Go", "stdlib", number, externalRefs=[_purl(f"pkg:golang/stdlib@{number}")])


def _distribution(metadata: str) -> Package:
    headers = HeaderParser().parsestr(metadata)
    name, version = headers["Name"], headers["Version"]
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return _package(f"Python-{normal}-{version}", name, version, externalRefs=[_purl(f"pkg:pypi/{normal}@{version}")])


def _sha256(digest: str) -> dict[str, str]:
    return {"algorithm": "SHA256", "checksumValue": digest}


def _purl(locator: str) -> dict[str, str]:
    return {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}


def _document(
    manifest: Manifest, packages: Iterable[Package], relations: Iterable[tuple[str, str, str]], created: int
) -> bytes:
    # A distribution that the image and the payload both have is one package in two places.
    by_id: Mapping[str, Package] = {package["SPDXID"]: package for package in packages}
    body: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"flox-node-{manifest.version}-{manifest.system}",
        "creationInfo": {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
            "creators": [f"Tool: flox-node-{manifest.version}"],
        },
        "packages": [package for _, package in sorted(by_id.items())],
        "relationships": [
            {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
            for one, kind, other in sorted(set(relations))
        ],
    }
    # The namespace names this very document, so it follows its content.
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    body["documentNamespace"] = f"https://spdx.org/spdxdocs/{body['name']}-{number}"
    return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
