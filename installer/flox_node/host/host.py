"""The node as one object: its files, its processes, its service manager."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flox_node.host.files import HostFiles
from flox_node.host.processes import Processes
from flox_node.host.systemd import DbusSystemd, Systemd


@dataclass(frozen=True)
class Host:
    """The only door to a node. Tests hand in a fake for a single side of it."""

    files: HostFiles
    processes: Processes
    systemd: Systemd

    @classmethod
    def at(cls, root: str | Path = "/") -> Host:
        """The node whose root file system is visible at `root` ("/" on the node, "/host" in the DaemonSet's pod)."""
        files = HostFiles(root)
        return cls(files, Processes(root), DbusSystemd(files))
