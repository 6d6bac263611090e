"""Which images an archive holds, by their names: an archive in Docker's form, in the OCI form, or in both."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any

_DOCKERS_OWN = ("docker.io/library/", "docker.io/")
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_MOST_BYTES = 1 << 20  # of either table


def names_in(file: IO[bytes]) -> set[str]:
    """The names of the images in an archive, short where Docker's are; none where it does not say.

    Raises:
        ValueError, tarfile.TarError: it is no such archive.
    """
    with tarfile.open(fileobj=file) as members:
        tables = {member.name: members.extractfile(member) for member in members if member.name in _TABLES}
        parsed = {name: json.loads(table.read(_MOST_BYTES)) for name, table in tables.items() if table is not None}
    if not parsed:
        raise ValueError("it is no archive of an image")
    return {_short(name) for table, content in parsed.items() for name in _TABLES[table](content)}


def _of_docker(manifest: Any) -> Iterator[str]:
    for image in manifest if isinstance(manifest, list) else ():
        yield from (str(tag) for tag in image.get("RepoTags") or ())


def _of_oci(index: Any) -> Iterator[str]:
    for manifest in index.get("manifests", ()) if isinstance(index, dict) else ():
        annotations = manifest.get("annotations") or {}
        # The second may be a tag alone.
        name = next((str(annotations[key]) for key in _NAMES if ":" in str(annotations.get(key))), None)
        if name:
            yield name


def _short(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _DOCKERS_OWN if name.startswith(prefix)), name)


_TABLES = {"manifest.json": _of_docker, "index.json": _of_oci}
