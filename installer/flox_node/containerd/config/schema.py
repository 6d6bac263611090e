"""Which schema versions a containerd takes, and under which plugin id it looks for runtime handlers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

CRI = "cri"  # schema 1
CRI_GRPC = "io.containerd.grpc.v1.cri"  # schema 2
CRI_RUNTIME = "io.containerd.cri.v1.runtime"  # schema 3 and 4
CRI_IMAGES = "io.containerd.cri.v1.images"

RUNC_V2 = "io.containerd.runc.v2"
RUNC_V1 = "io.containerd.runc.v1"  # same options, gone in 2.0
LINUX_V1 = "io.containerd.runtime.v1.linux"  # runc of containerd 1.0 to 1.2, gone in 2.0
BUILTIN_DEFAULT = "runc"
"""The default runtime where a configuration names none."""

_SAME_AS_UNSET = {"sandbox_mode": "podsandbox", "sandboxer": "podsandbox", "io_type": "fifo"}
"""What containerd fills in for a runtime that says nothing; a dump spells it out."""


def check_supported(containerd: ContainerdVersion) -> None:
    """Raise RefusedError unless the behaviour of this containerd is known."""
    if not (1, 6) <= (containerd.major, containerd.minor) < (3, 0):
        raise RefusedError(
            f"containerd {containerd} is not supported.",
            remedy="flox-node knows containerd 1.6, 1.7 and 2.x: upgrade containerd.",
        )


def check_schema(declared: int, containerd: ContainerdVersion) -> None:
    """Raise RefusedError where this containerd refuses a configuration that declares this `version` (0: none)."""
    newest = containerd.newest_schema
    if declared > newest and (containerd.major, containerd.minor) != (1, 6):
        raise RefusedError(
            f"containerd {containerd} refuses a configuration with version = {declared}: it reads up to {newest}.",
            remedy=f"Write the file for that containerd (version = {newest}), or check which containerd is meant.",
        )
    if declared < 0:
        raise RefusedError(f"version = {declared} is no schema of containerd.", remedy="Correct `version` first.")


def table(data: dict[str, Any], *path: str) -> dict[str, Any]:
    """The table at `path`, {} where there is none."""
    value: Any = data
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def meaning(table: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime's table without what is the same as saying nothing: tools that write a dump back spell all of it out.

    >>> meaning({"runtime_type": "io.containerd.runc.v2", "snapshotter": "", "options": {"SystemdCgroup": False}})
    {'runtime_type': 'io.containerd.runc.v2'}
    """
    cleaned = {name: meaning(value) if isinstance(value, Mapping) else value for name, value in table.items()}
    return {name: value for name, value in cleaned.items() if value and _SAME_AS_UNSET.get(name) != value}


def has_containerd_table(data: dict[str, Any], plugin: str) -> bool:
    """Whether the file says anything under the `containerd` table of this plugin id."""
    return "containerd" in table(data, "plugins", plugin)


def plugin_id(data: dict[str, Any], containerd: ContainerdVersion) -> str:
    """The plugin id under which a handler in this file becomes effective.

    Not a function of `version` alone: AKS writes version = 2 with the ids of schema 3, kind still writes schema 2 for
    containerd 2.3. Agrees with real daemons on every case of the corpus.
    """
    declared = int(data.get("version", 0))
    if containerd.major == 1:
        return CRI_GRPC if declared >= 2 else CRI
    if declared >= 3 or has_containerd_table(data, CRI_RUNTIME):
        return CRI_RUNTIME
    if declared == 2:
        return CRI_GRPC
    if containerd.migrates_each_file:
        for candidate in (CRI_GRPC, CRI):
            if has_containerd_table(data, candidate):
                return candidate
    return CRI_RUNTIME
