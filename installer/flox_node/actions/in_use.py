"""What running containers still need of us: the shim that their bundles name, and what they have mounted."""

from __future__ import annotations

from flox_node.host import Host, mounts
from flox_node.names import SHIM
from flox_node.platforms import facts

_TASKS = "io.containerd.runtime.v2.task/k8s.io"


def bundles_with_shim(host: Host) -> tuple[str, ...]:
    """The ids of the tasks whose bundle names the shim: containerd calls it until they are deleted."""
    found = []
    for state in facts(lambda platform: [platform.state]):
        for task in host.files.listdir(f"{state}/{_TASKS}"):
            options = host.files.read_optional(f"{state}/{_TASKS}/{task}/options.json")
            if options is not None and SHIM.encode() in options:
                found.append(task)
    return tuple(found)


def shim_in_use(host: Host) -> str:
    """Why the shim and what it reads have to stay; empty when they need not."""
    users = bundles_with_shim(host)
    return f"{len(users)} running containers and sandboxes name {SHIM}" if users else ""


def folder_in_use(host: Host, path: str) -> str:
    """Why a folder of ours cannot be removed with all in it; empty when it can."""
    shown = mounts.shown_elsewhere(host.files, path)
    if shown:
        return f"running containers have {len(shown)} folders below {path} mounted ({shown[0]})"
    return shim_in_use(host)
