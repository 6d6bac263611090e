"""The closure of a built environment: which store paths a container needs."""

from __future__ import annotations

import os

from flox_node.environments.errors import BuildFailedError
from flox_node.environments.paths import Paths
from flox_node.names import STORE_PATH

# Nix' base 32 leaves out e, o, t and u. The name is Nix' own alphabet: neither a slash nor a leading dot.
_LARGEST_FILE = 16 << 20


def is_store_path(text: str) -> bool:
    """Whether the text is exactly one store path, nothing below it."""
    return bool(STORE_PATH.fullmatch(text))


def hash_part(store_path: str) -> str:
    """The 32 characters that identify a store path."""
    return store_path.removeprefix("/nix/store/")[:32]


def requisites(environment: str, paths: Paths) -> tuple[str, ...]:
    """All store paths of a built environment, itself included, sorted.

    Raises:
        BuildFailedError: its list is missing, malformed, or names what is not in the store.
    """
    source = f"{environment}/requisites.txt"
    try:
        with open(paths.on_disk(source), "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise BuildFailedError(f"the built environment has no readable {source} ({error.strerror}).") from error
    if len(data) > _LARGEST_FILE:
        raise BuildFailedError(f"{source} is larger than {_LARGEST_FILE >> 20} MiB.")
    found = {environment}
    for line in data.decode("utf-8", "replace").splitlines():
        if not is_store_path(line):
            raise BuildFailedError(f"{source} holds {line[:80]!a}, which is no store path.")
        found.add(line)
    for path in found:
        if not os.path.lexists(paths.on_disk(path)):
            raise BuildFailedError(f"{path} of the environment's closure is not in the store.")
    return tuple(sorted(found))
