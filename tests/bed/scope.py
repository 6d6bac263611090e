"""What a running box or daemon owns on this machine, and how all of it goes away, whoever was killed.

A scope is a folder below the cache, a cgroup of the same name in every hierarchy, and a network namespace. Its owner
holds a lock on a file beside the folder for as long as it lives; the kernel drops the lock with the process, so a scope
whose lock is free is stale, and `sweep` removes it. The file is made before the rest and removed after it. Mounts need
no bookkeeping: they are made in private mount namespaces and fall with the scope's processes.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bed import cache
from tests.bed.processes import PATIENCE_S, has_ended

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "flox-bed-"


class Scope:
    """A named place for processes and files, made by the constructor and gone after `close`."""

    def __init__(self, kind: str) -> None:
        """kind: a short word for the name, which is `flox-bed-<kind>-<random>`. Stale scopes are swept first."""
        sweep()
        self.name = f"{PREFIX}{kind}-{uuid.uuid4().hex[:8]}"
        self.folder = _running() / self.name
        _running().mkdir(parents=True, exist_ok=True)
        with cache.locked("scopes"):  # a sweep must not find the file before its lock is held
            self._lock = os.open(_lock_of(self.name), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self.folder.mkdir()
            self._make_cgroups()
            _run("ip", "netns", "add", self.name)
            _run("ip", "-n", self.name, "link", "set", "lo", "up")
            # As every node it has an address besides lo; without one Nix takes itself for offline and fetches nothing.
            _run("ip", "-n", self.name, "link", "add", "eth0", "type", "bridge")
            _run("ip", "-n", self.name, "address", "add", "192.0.2.1/24", "dev", "eth0")
            _run("ip", "-n", self.name, "link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise

    @property
    def network_namespace(self) -> Path:
        """The scope's network namespace as a file; it outlives the scope's processes."""
        return Path("/run/netns") / self.name

    def popen(self, script: str, *arguments: str | Path, log: Path) -> "subprocess.Popen[bytes]":
        """Start a `sh` script with arguments in the scope's cgroups, with a session and a mount namespace of its own.

        The script should end in `exec`, so that the process returned is the program. Its output is appended to `log`.
        """
        join = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1/cgroup.procs"; shift; n=$((n - 1)); done; '
        cgroups = _cgroups(self.name)
        command = ["unshare", "--mount", "sh", "-euc", join + script, "sh", str(len(cgroups)), *map(str, cgroups)]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        with log.open("ab") as output:
            return subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill every process of the scope at once and wait until none is left."""
        _kill(self.name)

    def prune(self) -> None:
        """Remove the cgroups that programs of the scope made below its own, if no process is left in them."""
        for cgroup in _cgroups(self.name):
            for path, _, _ in os.walk(cgroup, topdown=False):
                if path != str(cgroup):
                    with contextlib.suppress(OSError):
                        _insist(path)

    def close(self) -> None:
        """Kill and remove everything."""
        _remove(self.name)
        os.close(self._lock)

    def _make_cgroups(self) -> None:
        hierarchies = [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]
        if not any(path.name == "systemd" for path in hierarchies):
            raise RuntimeError("The bed needs cgroup version 1 controllers (hybrid mode) below /sys/fs/cgroup.")
        for hierarchy in hierarchies:
            cgroup = hierarchy / self.name
            cgroup.mkdir()
            if hierarchy.name == "cpuset":  # a new cpuset is empty, and a process cannot join an empty one
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (cgroup / file).write_text((hierarchy / file).read_text())


def sweep() -> list[str]:
    """Remove what killed owners left behind; the names of the scopes removed."""
    swept = []
    with cache.locked("scopes"):
        for name in sorted(path.stem for path in _running().glob(f"{PREFIX}*.lock")):
            with _unowned(name) as unowned:
                if unowned:
                    _remove(name)
                    swept.append(name)
    return swept


@contextlib.contextmanager
def _unowned(name: str) -> Iterator[bool]:
    """Whether nobody owns a scope; if so, it is ours while the context lasts."""
    try:
        lock = os.open(_lock_of(name), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its owner has just removed it
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield _lock_of(name).exists()
    finally:
        os.close(lock)


def _remove(name: str) -> None:
    _kill(name)
    for cgroup in _cgroups(name):
        for path, _, _ in os.walk(cgroup, topdown=False):
            _insist(path)
    if (Path("/run/netns") / name).exists():
        _run("ip", "netns", "delete", name)
    if (_running() / name).exists():
        shutil.rmtree(_running() / name)
    _lock_of(name).unlink()


def _insist(cgroup: str) -> None:
    """Remove an empty cgroup; right after its last process died the kernel may still call it busy."""
    for _ in range(2000):
        try:
            os.rmdir(cgroup)
        except OSError:
            time.sleep(0.01)
        else:
            return
    os.rmdir(cgroup)


def _kill(name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while pids := _processes(name):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"Processes {sorted(pids)} of {name} do not die.")
        time.sleep(0.01)


def _processes(name: str) -> set[int]:
    """The live processes in the scope's cgroups; zombies hold nothing and wait only for their parent."""
    pids: set[int] = set()
    for cgroup in _cgroups(name):
        for path, _, _ in os.walk(cgroup):
            with contextlib.suppress(OSError):
                pids.update(int(line) for line in (Path(path) / "cgroup.procs").read_text().split())
    return {pid for pid in pids if not has_ended(pid)}


def _cgroups(name: str) -> list[Path]:
    return [path / name for path in sorted(CGROUPS.iterdir()) if (path / name).is_dir()]


def _lock_of(name: str) -> Path:
    return _running() / f"{name}.lock"


def _running() -> Path:
    return cache.folder() / "running"


def _run(*command: Sequence[str] | str) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
