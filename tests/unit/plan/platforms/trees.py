"""Nodes as trees of files: what a platform leaves on a disk and in procfs, as far as it is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flox_node.host import Host

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
STANDARD = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class Process:
    """A process of the node; `listens` is the path of its unix socket."""

    argv: tuple[str, ...]
    unit: str
    exe: str = ""
    listens: str = ""
    pid_namespace: int = 1


@dataclass(frozen=True)
class Node:
    """What is written below a root. A folder is a path that ends with "/"."""

    processes: tuple[Process, ...]
    files: tuple[str, ...] = ()
    os_release: str = DEBIAN
    texts: Mapping[str, str] = field(default_factory=dict)
    root_source: str = "/dev/vda1"

    def at(self, root: Path) -> Host:
        """Write it below `root`."""
        texts = {
            "/etc/os-release": self.os_release,
            "/proc/1/mounts": f"proc /proc proc rw 0 0\n{self.root_source} / ext4 rw 0 0\n",
            **self.texts,
        }
        for path in self.files:
            (root / path.strip("/")).mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        _process(root, 1, Process(("/sbin/init",), "init.scope"))
        for number, process in enumerate(self.processes, start=100):
            _process(root, number, process)
        return Host.at(root)


def containerd(
    unit: str = "containerd.service", exe: str = "/usr/bin/containerd", socket: str = STANDARD, config: str = ""
) -> Process:
    """A containerd as a service manager or a distribution starts it."""
    argv = (exe, *(("--config", config) if config else ()))
    return Process(argv, unit, listens=socket)


def kubelet(*flags: str) -> Process:
    """A kubelet of its own."""
    return Process(("/usr/bin/kubelet", *flags), "kubelet.service")


def _process(root: Path, pid: int, process: Process) -> None:
    folder = root / "proc" / str(pid)
    for name in ("ns", "fd", "net"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "exe").symlink_to(process.exe or process.argv[0].split(" ")[0])
    (folder / "cmdline").write_text("\0".join(process.argv) + "\0")
    (folder / "environ").write_text("PATH=/usr/sbin:/usr/bin\0")
    (folder / "cgroup").write_text(f"0::/system.slice/{process.unit}\n")
    (folder / "ns/pid").symlink_to(f"pid:[{process.pid_namespace}]")
    table = "Num       RefCount Protocol Flags    Type St Inode Path\n"
    if process.listens:
        inode = 5000 + pid
        table += f"0000: 00000002 00000000 00010000 0001 01 {inode} {process.listens}\n"
        (folder / "fd/3").symlink_to(f"socket:[{inode}]")
    (folder / "net/unix").write_text(table)
