"""The store in numbers."""

from __future__ import annotations

import contextlib
import re

from flox_node.errors import CorruptError
from flox_node.host import Host
from flox_node.host.nixdb import totals
from flox_node.host.space import free_ratios
from flox_node.payload.place import DATABASE, ROOTS

_NAMED = re.compile(r"^/nix/store/[0-9a-z]{32}-[^/]*?-(?P<version>[0-9][^/-]*)")


def version_of(store_path: str) -> str:
    """The version in a store path's name ("1.14.1" of "/nix/store/<hash>-flox-1.14.1/bin/flox"), or ""."""
    found = _NAMED.match(store_path)
    return found["version"] if found else ""


def gauges(host: Host) -> dict[str, float]:
    """Paths and bytes (of NAR) that Nix knows, our roots, and the free shares of the store's file system."""
    found: dict[str, float] = {"roots": len(host.files.listdir(ROOTS))}
    with contextlib.suppress(CorruptError):  # `doctor` and the drift say so
        found["store_paths"], found["store_bytes"] = totals(host.files.real(DATABASE))
    if host.files.exists("/nix"):
        found["store_free_ratio"], found["store_free_inodes_ratio"] = free_ratios(host.files.real("/nix"))
    return found
