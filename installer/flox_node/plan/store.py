"""The store in numbers."""

from __future__ import annotations

import contextlib
import os
import re

from flox_node.errors import CorruptError
from flox_node.host import Host
from flox_node.host.nixdb import valid_paths
from flox_node.payload.place import DATABASE, ROOTS

_NAMED = re.compile(r"^/nix/store/[0-9a-z]{32}-[^/]*?-(?P<version>[0-9][^/-]*)")


def version_of(store_path: str) -> str:
    """The version in a store path's name ("1.14.1" of "/nix/store/<hash>-flox-1.14.1/bin/flox"), or ""."""
    found = _NAMED.match(store_path)
    return found["version"] if found else ""


def gauges(host: Host) -> dict[str, float]:
    """Paths and bytes (of NAR) that Nix knows, our roots, and the free share of the store's file system."""
    found: dict[str, float] = {"roots": len(host.files.listdir(ROOTS))}
    with contextlib.suppress(CorruptError):  # `doctor` and the drift say so
        paths = valid_paths(host.files.real(DATABASE)).values()
        found |= {"store_paths": len(paths), "store_bytes": sum(path.nar_size for path in paths)}
    if host.files.exists("/nix"):
        space = os.statvfs(host.files.real("/nix"))
        found["store_free_ratio"] = space.f_bavail / max(1, space.f_blocks)
    return found
