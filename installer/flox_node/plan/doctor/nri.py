"""NRI, whose plugins connect to a socket of containerd's: the one place where two containerds of a node meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flox_node.containerd.config import schema
from flox_node.containerd.config.effective import Effective, load
from flox_node.containerd.live import daemon
from flox_node.plan.doctor.check import Check, Verdict, told
from flox_node.plan.doctor.node import Node

_PLUGIN = "io.containerd.nri.v1.nri"
_SOCKET = "/run/nri/nri.sock"


@dataclass(frozen=True)
class Listener:
    """A containerd (in words for a person) and the socket that it listens on for plugins of NRI."""

    containerd: str
    socket: str


def socket_of(effective: Effective) -> str | None:
    """Where a containerd with this configuration listens for plugins; None where it does not.

    It does so with its CRI: from 2.0 on unless that is switched off, in 1.7 only when it is switched on.
    """
    release = effective.containerd
    table = schema.table(effective.merged, "plugins", _PLUGIN)
    off = table.get("disable", release.major < 2) or table.get("disable_connections", False)
    if off or (release.major, release.minor) < (1, 7) or effective.state != "ok":
        return None
    socket = str(table.get("socket_path") or _SOCKET)
    return socket.removeprefix("/var") if socket.startswith("/var/run/") else socket


def _listeners(node: Node) -> list[Listener]:
    found = []
    for process in node.host.processes.named("containerd"):
        if (program := daemon.program_of(node.host, process)) is None:
            continue
        config = daemon.config_argument(process.argv) or daemon.DEFAULT_CONFIG
        socket = socket_of(load(config, node.host.files, daemon.version_of(node.host, program)))
        if socket is not None:
            found.append(Listener(f"{program} (pid {process.pid}, {config})", socket))
    return found


def decide(listeners: list[Listener]) -> Verdict:
    """The one that starts last takes the socket from the other; of two that start at once, one fails with its CRI."""
    by_socket: dict[str, list[str]] = {}
    for listener in listeners:
        by_socket.setdefault(listener.socket, []).append(listener.containerd)
    return told(
        [
            f"{' and '.join(rivals)} listen on {socket}: one takes it from the other, or ends when both start at once"
            for socket, rivals in by_socket.items()
            if len(rivals) > 1
        ],
        otherwise=", ".join(by_socket),
    )


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "nri-socket",
        "no two containerds listen on one socket for plugins of NRI",
        'write `[plugins."io.containerd.nri.v1.nri"]` with `disable = true` into the configuration of the one that no '
        "kubelet uses, and restart it",
        _listeners,
        decide,
    ),
)
