"""The containerd in question: the process that serves the kubelet's CRI socket, never what PATH finds.

A host may run several (Docker's beside k3s' own), and the one on PATH may be none of them: see anchors such as
NVIDIA/nvidia-container-toolkit issues 982 and gpu-operator 1323.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from flox_node.containerd.cri import CriClient
from flox_node.errors import RefusedError
from flox_node.host import Host

DEFAULT_SOCKET = "/run/containerd/containerd.sock"
DEFAULT_CONFIG = "/etc/containerd/config.toml"


@dataclass(frozen=True)
class Daemon:
    """A running containerd. Paths are the node's."""

    socket: str
    pid: int
    exe: str
    config_path: str
    unit: str
    search_path: tuple[str, ...]


def find(host: Host, socket: str = DEFAULT_SOCKET, *, patience_s: float = 10.0) -> Daemon:
    """The containerd that listens on `socket`; one that is just being restarted gets `patience_s` to come back.

    Raises:
        RefusedError: nobody listens there, or it is not containerd, or it runs under no systemd unit.
    """
    end = time.monotonic() + patience_s
    while (process := host.processes.socket_owner(socket)) is None and time.monotonic() < end:
        time.sleep(0.1)
    if process is None:
        raise RefusedError(
            f"No process listens on {socket}.",
            remedy="Start containerd first (`systemctl start containerd`), or name its socket with --socket.",
        )
    if process.exe.rpartition("/")[2] != "containerd":
        raise RefusedError(
            f"{socket} is served by {process.exe}, which is not containerd.",
            remedy="flox-node registers runtime handlers with containerd 1.6 or newer only.",
        )
    if process.unit is None:
        raise RefusedError(
            f"containerd (pid {process.pid}) runs under no systemd unit, so flox-node could not restart it safely.",
            remedy="Run containerd as a systemd service.",
        )
    return Daemon(
        socket=socket,
        pid=process.pid,
        exe=process.exe,
        config_path=_config_argument(process.argv) or DEFAULT_CONFIG,
        unit=process.unit,
        search_path=process.search_path,
    )


def cri(host: Host, socket: str) -> CriClient:
    """A client of the CRI behind the node's `socket`."""
    return CriClient(host.files.real(socket))


def _config_argument(argv: tuple[str, ...]) -> str | None:
    for index, word in enumerate(argv):
        if word in ("-c", "--config", "-config") and index + 1 < len(argv):
            return argv[index + 1]
        for prefix in ("-c=", "--config=", "-config="):
            if word.startswith(prefix):
                return word.removeprefix(prefix)
    return None
