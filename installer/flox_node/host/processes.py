"""The node's processes: running a program of the node, and finding the one that serves a socket."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flox_node.errors import OutsideError
from flox_node.host.children import Completed, Finish, started_group
from flox_node.host.files import HostFiles

_OUTPUT_LIMIT = 64 << 20  # bytes
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class RunningProcess:
    """A process of the node, as its procfs shows it. Paths are the node's."""

    pid: int
    exe: str
    argv: tuple[str, ...]
    unit: str | None
    search_path: tuple[str, ...]


class Processes:
    """Processes of the node below a host root.

    The host's procfs is read through the host root, so neither hostPID nor nsenter is needed.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self._files = HostFiles(root)
        self.root = Path(root)

    def run(
        self, argv: Sequence[str], *, input: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Completed:
        """Run a program of the node, chrooted into the host root, with an almost empty environment.

        Raises:
            OutsideError: it is not there or did not end within `timeout` seconds.
        """
        with self.started(argv, env=env, timeout=timeout) as finish:
            return finish(input)

    @contextlib.contextmanager
    def started(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Iterator[Finish]:
        """Start a program as `run` does, now, and give it its input later. It is killed if that never happens.

        Raises:
            OutsideError: see `run`.
        """

        environment = {"PATH": _PATH, "LC_ALL": "C", **(env or {})}
        with started_group(argv, env=environment, timeout=timeout, limit=_OUTPUT_LIMIT, root=self.root) as finish:

            def finish_in_time(input: bytes) -> Completed:
                done = finish(input)
                if done.timed_out:
                    raise OutsideError(f"{argv[0]} did not end within {timeout:.0f} s.")
                return done

            yield finish_in_time

    def which(self, name: str, search_path: Sequence[str]) -> str | None:
        """The node's path of an executable found on a search path."""
        for folder in search_path:
            candidate = f"{folder.rstrip('/')}/{name}"
            real = self._files.real(candidate)
            if real.is_file() and os.access(real, os.X_OK):
                return candidate
        return None

    def named(self, *names: str) -> list[RunningProcess]:
        """The node's own processes whose program, or first argument, has one of these names; oldest pid first."""
        found = []
        for pid in self._pids():
            if self._name(pid) not in names and self._program(pid) not in names:
                continue
            process = self.describe(pid) if self._is_ours(pid) else None
            if process is not None:
                found.append(process)
        return found

    def socket_owner(self, socket: str) -> RunningProcess | None:
        """The process that listens on a unix socket of the node, or None when nobody does.

        A node in a container of this node (kind) may have a socket of the same name: its processes do not count.
        """
        for pid in self._pids():
            inodes = self._listening_inodes(pid, socket)
            if inodes and self._holds(pid, inodes) and self._is_ours(pid):
                return self.describe(pid)
        return None

    def started_at(self, pid: int) -> float | None:
        """When a process was started, in seconds since the epoch; None when it is gone. PID 1's is the node's boot.

        To one tick of the clock (10 ms), rounded up: who writes a file and then starts the process that reads it has
        written it before. `btime` of /proc/stat would be right to a second only.
        """
        ticks = self.started_at_tick(pid)
        if ticks is None:
            return None
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return boot + (ticks + 1) / os.sysconf("SC_CLK_TCK")

    def started_at_tick(self, pid: int) -> int | None:
        """When a process was started, in ticks since the boot; None when it is gone.

        With its pid and the boot it is one process and no other, whatever is done to the clock.
        """
        stat = self._files.real("/proc") / str(pid) / "stat"
        try:
            return int(stat.read_text().rpartition(")")[2].split()[19])
        except (OSError, IndexError, ValueError):
            return None

    def describe(self, pid: int) -> RunningProcess | None:
        """What procfs says of one process, or None when it is gone or a kernel thread."""
        folder = self._files.real("/proc") / str(pid)
        try:
            exe = os.readlink(folder / "exe").removesuffix(" (deleted)")
            argv = tuple(_words(folder / "cmdline"))
            environment = dict(word.split("=", 1) for word in _words(folder / "environ") if "=" in word)
            unit = unit_of((folder / "cgroup").read_text())
        except OSError:
            return None
        return RunningProcess(pid, exe, argv, unit, tuple(environment.get("PATH", _PATH).split(":")))

    def _pids(self) -> Iterator[int]:
        try:
            names = os.listdir(self._files.real("/proc"))
        except FileNotFoundError:
            return
        yield from sorted(int(name) for name in names if name.isdigit())

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is in the node's own PID namespace, not in one of a container.

        Where PID 1 does not show its namespace (a confined pod), nothing is known, and that excludes nobody.
        """
        proc = self._files.real("/proc")
        node = _readlink(proc / "1/ns/pid")
        return node is None or _readlink(proc / str(pid) / "ns/pid") == node

    def _name(self, pid: int) -> str:
        target = _readlink(self._files.real("/proc") / str(pid) / "exe") or ""
        return target.removesuffix(" (deleted)").rpartition("/")[2]

    def _program(self, pid: int) -> str:
        try:
            words = _words(self._files.real("/proc") / str(pid) / "cmdline")
        except OSError:
            return ""
        # A program that sets its title (k3s) has all its words in the first one.
        return words[0].split(" ")[0].rpartition("/")[2] if words else ""

    def _listening_inodes(self, pid: int, socket: str) -> set[str]:
        # Each process has its own view of the sockets (its network namespace), so its own table is asked.
        wanted = {socket, socket.replace("/run/", "/var/run/", 1)}
        try:
            table = (self._files.real("/proc") / str(pid) / "net/unix").read_text()
        except OSError:
            return set()
        # Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is a listening socket (__SO_ACCEPTCON).
        rows = (line.split() for line in table.splitlines()[1:])
        return {row[6] for row in rows if len(row) == 8 and row[7] in wanted and int(row[3], 16) & 0x10000}

    def _holds(self, pid: int, inodes: set[str]) -> bool:
        folder = self._files.real("/proc") / str(pid) / "fd"
        wanted = {f"socket:[{inode}]" for inode in inodes}
        try:
            names = os.listdir(folder)
        except OSError:
            return False
        return any(_readlink(folder / name) in wanted for name in names)


def unit_of(cgroup: str) -> str | None:
    """The systemd unit in a `/proc/<pid>/cgroup` text: the innermost `.service` of the systemd hierarchy (v1 or v2).

    A node may itself lie in a container (kind), so the unit is looked for from the end of the path.
    """
    for line in cgroup.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if controllers == "name=systemd" or hierarchy == "0":
            for part in reversed(path.split("/")):
                if part.endswith(".service"):
                    return part
    return None


def _words(file: Path) -> list[str]:
    return [word.decode(errors="surrogateescape") for word in file.read_bytes().split(b"\0") if word]


def _readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
