"""A node box: a throw-away node with systemd as PID 1 and a real containerd as its unit.

The box is a systemd-nspawn container over three layers: the node root, a containerd release, the box's own disk.
The disk (and with it /etc, /nix, /opt, /var) outlives a power cut; /run and /tmp do not, as on a node.
"""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bed import images, releases, rootfs
from tests.bed.config import node_config
from tests.bed.cri import CriClient
from tests.bed.scope import Scope

CONTAINERD_SOCKET = "run/containerd/containerd.sock"
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}

# Runs in a mount namespace of its own, so the overlay falls with the box. nspawn takes the system calls away that runc's
# keyrings and device rules need, and a network namespace that outlives a power cut.
BOOT = """
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/disk,workdir=$1/work" "$1/root"
export SYSTEMD_NSPAWN_LOCK=0 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=0
exec systemd-nspawn --quiet --register=no --keep-unit --directory="$1/root" --machine="$3" --hostname=node \
    --network-namespace-path="$4" --capability=all --system-call-filter="add_key keyctl bpf" \
    --resolv-conf=off --timezone=off --link-journal=no --console=pipe --bind="$1/containerd:/var/lib/containerd" --boot
"""


class NodeBox:
    """One node, off until `boot`. As a context manager it is booted on entry and removed on exit."""

    def __init__(self, containerd: str = "1.7", *, config: str | None = None) -> None:
        """containerd: the release ("1.6", "1.7", "2.1", "2.3"). config: the text of its config.toml; default a plain node's."""
        self.containerd = containerd
        self.boot_seconds = 0.0
        self._layers = f"{releases.layer(containerd)}:{rootfs.folder()}"
        self._pid = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._served: list[subprocess.Popen[bytes]] = []
        self._cri: CriClient | None = None
        self._images_loaded = False
        self._scope = Scope("node")
        for name in ("disk", "work", "root", "containerd", "logs"):
            (self._scope.folder / name).mkdir()
        for name, text in {
            "machine-id": f"{uuid.uuid4().hex}\n",
            "hostname": "node\n",
            "containerd/config.toml": node_config() if config is None else config,
        }.items():
            path = self.disk / "etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def __enter__(self) -> Self:
        try:
            return self.boot()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def disk(self) -> Path:
        """The box's writable layer: what differs from the node root. Write into it only while the box is off."""
        return self._scope.folder / "disk"

    @property
    def pid(self) -> int:
        """The pid of the node's PID 1 as this machine counts; it changes with every boot."""
        if not self._pid:
            raise RuntimeError("The box is off.")
        return self._pid

    @property
    def root(self) -> Path:
        """The running node's `/` as seen from this machine. Absolute symbolic links below it lead out of it."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def cri(self) -> CriClient:
        """A CRI client of the node's containerd."""
        if self._cri is None:
            self._cri = CriClient(self.root / CONTAINERD_SOCKET, self.root)
        return self._cri

    def boot(self, timeout: float = 30) -> Self:
        """Switch the node on, wait until its units have settled and, the first time, load the standard images."""
        if self._pid:
            raise RuntimeError("The box is on.")
        started = time.monotonic()
        console = self._scope.folder / "logs/console"
        arguments = (self._scope.folder, self._layers, self._scope.name, self._scope.network_namespace)
        self._nspawn = self._scope.popen(BOOT, *arguments, log=console)
        deadline = started + timeout
        try:
            while not self._has_settled(self._nspawn):
                if self._nspawn.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The box does not boot:\n{console.read_text(errors='replace')[-4000:]}")
                time.sleep(0.01)
        except BaseException:
            self.cut_power()
            raise
        self.boot_seconds = time.monotonic() - started
        if not self._images_loaded:
            self.load(*images.standard())
            self._images_loaded = True
        return self

    def cut_power(self) -> None:
        """Kill everything that runs on the node at once; nothing gets a chance to clean up."""
        if self._cri is not None:
            self._cri.close()
            self._cri = None
        if self._nspawn is not None:
            if self._pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            else:
                self._nspawn.kill()
            self._nspawn.wait()
            self._nspawn = None
        self._pid = 0

    def halt(self, timeout: float = 20) -> None:
        """Shut the node down in order, as `systemctl poweroff` does; after `timeout` seconds cut the power."""
        os.kill(self.pid, signal.SIGRTMIN + 4)
        if self._nspawn is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(timeout)
        self.cut_power()

    def reboot(self) -> Self:
        """Cut the power and boot again from the same disk."""
        self.cut_power()
        return self.boot()

    def close(self) -> None:
        """Switch the node off and remove everything it had."""
        self.cut_power()
        self._scope.kill()
        for process in self._served:
            process.wait()
        self._scope.close()

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node as root: an argv, or a string for `sh -c`. A failure raises with its output.

        env: in addition to a plain PATH, LC_ALL and HOME. timeout: seconds.
        """
        done = subprocess.run(
            self._enter(command),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, **(env or {})},
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def popen(self, command: str | Sequence[str], *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a command on the node with pipes for its input and output. The process is nsenter, the command its child."""
        return subprocess.Popen(
            self._enter(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **(env or {})},
        )

    def serve(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a program of this machine in the node's network (127.0.0.1 is the node's), until the box is closed.

        It goes on through power cuts of the node. Its output is in `served.log` of the box's logs.
        """
        script = 'net=$1; shift; exec nsenter --net="$net" env "$@"'
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        log = self._scope.folder / "logs/served.log"
        self._served.append(self._scope.popen(script, self._scope.network_namespace, *variables, *argv, log=log))
        return self._served[-1]

    def ctr(self, *arguments: str | Path) -> str:
        """Run the release's `ctr` on this machine against the node's containerd (paths are this machine's); its output."""
        socket = self.root / CONTAINERD_SOCKET
        command = [releases.program(self.containerd, "ctr"), "--address", socket, "--namespace", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def load(self, *archives: Path) -> None:
        """Load image archives of this machine into the node's containerd."""
        for archive in archives:
            self.ctr("images", "import", archive)

    def main_pid(self, unit: str) -> int:
        """The main process of a unit as the node counts; 0 if it does not run."""
        return int(self.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout)

    def logs(self) -> str:
        """The console, what served programs wrote, and the journal if the node is on: for the report of a failed test."""
        parts = [
            f"--- {path.name}\n{path.read_text(errors='replace')}" for path in (self._scope.folder / "logs").iterdir()
        ]
        if self._pid:
            parts.append(f"--- journal\n{self.run(['journalctl', '--no-pager', '--lines=300'], check=False).stdout}")
        return "\n".join(parts)

    def _enter(self, command: str | Sequence[str]) -> list[str]:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        return ["nsenter", f"--target={self.pid}", *NAMESPACES, *argv]

    def _has_settled(self, nspawn: "subprocess.Popen[bytes]") -> bool:
        self._pid = self._pid or _init_of(nspawn.pid)
        if not self._pid or not (self.root / "run/systemd/private").exists():
            return False
        state = self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip()
        return state in ("running", "degraded")


def _init_of(nspawn: int) -> int:
    """The child of nspawn that is PID 1 of the box; 0 if there is none yet."""
    try:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        for child in children:
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2:
                    return int(child)
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0
