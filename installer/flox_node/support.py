"""Support bundles: what a helper needs to know, packed with no secret in it.

A member that cannot be had holds the reason instead.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.errors import FloxNodeError
from flox_node.redact import Redactor


@dataclass(frozen=True)
class Bundle:
    """A `.tar.gz`, and the names of what is in it."""

    archive: bytes
    members: tuple[str, ...]


def bundle(members: Mapping[str, Callable[[], Any]], redactor: Redactor) -> Bundle:
    """Find each member, a text or plain data, take the secrets out and pack them all."""
    contents: dict[str, bytes] = {}
    for name, find in members.items():
        try:
            found = find()
        except (FloxNodeError, OSError, ValueError) as error:
            found = f"not available: {error}\n"
        if isinstance(found, str):
            contents[name] = redactor.text(found).encode(errors="replace")
        else:
            contents[name] = json.dumps(redactor.data(found), indent=1, default=str).encode() + b"\n"
    return Bundle(_packed(contents), tuple(contents))


def _packed(contents: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as compressed, tarfile.open(fileobj=compressed, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"flox-node-support/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
