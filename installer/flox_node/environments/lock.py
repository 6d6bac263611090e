"""What a manifest.lock may hold to be realised on a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.environments.closure import is_store_path
from flox_node.environments.errors import UnsupportedError


@dataclass(frozen=True)
class Package:
    """A locked package that binary caches have, by the name that its author gave it: the store paths of all outputs."""

    name: str
    paths: tuple[str, ...]


def packages(lock: Mapping[str, Any], system: str, *, published: bool = False) -> tuple[Package, ...]:
    """The packages of a checked lock for this system: those that binary caches have, or those of custom catalogs.

    The latter, which users published, are fetched by Flox itself, from where the hub's API tells the pod's token. Flox
    never builds them.

    Raises:
        UnsupportedError: something else than a store path is locked.
    """
    found = []
    for package in lock["packages"]:
        if package.get("system", system) != system or _is_custom(package, lock) != published:
            continue
        paths = [package["store_path"]] if "store_path" in package else list(package["outputs"].values())
        if not all(isinstance(path, str) and is_store_path(path) for path in paths):
            raise UnsupportedError(f"its manifest.lock names no store path for {_shown(package)}.")
        found.append(Package(_shown(package), tuple(paths)))
    return tuple(found)


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
        if package.get("system", system) != system:
            continue
        if not _is_built(package):
            yield _shown(package)


def _is_built(package: Mapping[str, Any]) -> bool:
    # Flox takes an entry for a flake that has all of a flake's fields, whatever else it has.
    if any(str(key).startswith(("locked-url", "locked-flake", "flake")) for key in package):
        return False
    return "store_path" in package or ("attr_path" in package and isinstance(package.get("outputs"), dict))


def _is_custom(package: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    # As Flox decides it: by the manifest, not by the lock. A first part with a dot is one of Nixpkgs' own names.
    try:
        first, slash, _ = str(lock["manifest"]["install"][package["install_id"]]["pkg-path"]).partition("/")
    except (LookupError, TypeError):
        return False
    return bool(slash) and "." not in first


def _shown(package: Mapping[str, Any]) -> str:
    return ascii(str(package.get("install_id", "?")))[1:-1][:60]
