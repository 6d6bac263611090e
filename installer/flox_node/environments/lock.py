"""What a manifest.lock may hold to be realised on a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flox_node.environments.errors import UnsupportedError


def check(lock: Mapping[str, Any], system: str) -> None:
    """Refuse what a node does not realise, by the names that its author gave it.

    Flake installs are evaluated and built where they are realised: a tenant's code, as root, with the network. A node
    takes only what is built already: store paths and packages of the catalog.

    Raises:
        UnsupportedError: the lock is of an unknown form, or holds flake installs for this system.
    """
    if lock.get("lockfile-version") != 1 or not isinstance(lock.get("packages"), list):
        raise UnsupportedError(f"its manifest.lock has the unknown version {ascii(lock.get('lockfile-version'))[:40]}.")
    flakes = sorted(set(_flakes(lock, system)))
    if flakes:
        shown = ", ".join(flakes[:5]) + (" and others" if len(flakes) > 5 else "")
        raise UnsupportedError(
            f"it installs flakes, which a node does not build: {shown}.",
            remedy="Publish them to a catalog (`flox publish`) and install them from there.",
        )


def _flakes(lock: Mapping[str, Any], system: str) -> Iterator[str]:
    for package in lock["packages"]:
        if not isinstance(package, dict):
            raise UnsupportedError("its manifest.lock is malformed.")
        known = "store_path" in package or ("attr_path" in package and "outputs" in package)
        if package.get("system", system) == system and not known:
            yield ascii(str(package.get("install_id", "?")))[1:-1][:60]
