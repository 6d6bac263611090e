"""The shim's records of sandboxes and containers that are no more.

The shim removes a record with the container, or with its sandbox. One that stays does no harm: no id comes twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from flox_node.containerd.live import daemon
from flox_node.host import Host

PODS, CONTAINERS = "/run/flox-node/pods", "/run/flox-node/containers"
_FRESH_S = 600.0  # a container has its record before containerd lists it


def orphans(host: Host, socket: str) -> tuple[str, ...]:
    """The records that belong to no sandbox and no container of the node, whatever their state.

    Raises:
        OutsideError: the CRI does not answer.
    """
    cri = daemon.cri(host, socket)
    found = [(PODS, {each.id for each in cri.sandboxes()}), (CONTAINERS, {each.id for each in cri.containers()})]
    return tuple(path for folder, known in found for path in _unknown(host, folder, known))


def _unknown(host: Host, folder: str, known: set[str]) -> Iterator[str]:
    for name in host.files.listdir(folder):
        path = f"{folder}/{name}"
        changed_at = host.files.changed_at(path)
        is_old = changed_at is not None and changed_at < time.time() - _FRESH_S
        if name.endswith(".json") and name.removesuffix(".json") not in known and is_old:
            yield path
