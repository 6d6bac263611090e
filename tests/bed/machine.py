"""What a node box and a stand-alone daemon share: layers of files, run by systemd-nspawn, with a containerd inside."""

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bed import images, releases, rootfs
from tests.bed.config import node_config
from tests.bed.cri import CriClient
from tests.bed.processes import PATIENCE_S
from tests.bed.scope import Scope

SOCKET = "run/containerd/containerd.sock"
CONFIG = "etc/containerd/config.toml"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

# Runs in a mount namespace of its own, so the overlay and nspawn's own files below /run fall with the machine.
# The system calls are what runc's keyrings and device rules need. /var/lib/containerd is no overlay because the
# snapshots in it are.
NSPAWN = """
folder=$1 layers=$2 name=$3 network=$4; shift 4
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$folder/disk,workdir=$folder/work" "$folder/root"
export SYSTEMD_NSPAWN_LOCK=0 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=0
exec systemd-nspawn --quiet --register=no --keep-unit --directory="$folder/root" --machine="$name" --hostname=node \
    --network-namespace-path="$network" --capability=all --system-call-filter="add_key keyctl bpf" \
    --resolv-conf=off --timezone=off --link-journal=no --console=pipe \
    --bind="$folder/containerd:/var/lib/containerd" "$@"
"""


class Machine(ABC):
    """Files and processes of one throw-away machine, off until a subclass switches it on; removed by `close`."""

    def __init__(self, kind: str, containerd: str, config: str | None) -> None:
        """containerd: the release. config: the text of /etc/containerd/config.toml, by default a plain node's."""
        self.containerd = containerd
        self.socket = SOCKET  # of the containerd that a kubelet of this machine uses
        self.layers = f"{releases.layer(containerd)}:{rootfs.folder()}"  # what lies below its own disk
        self._pid = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._served: list[subprocess.Popen[bytes]] = []
        self._cri: CriClient | None = None
        self._scope = Scope(kind)
        for name in ("disk", "work", "root", "containerd", "logs"):
            (self._scope.folder / name).mkdir()
        self.write(CONFIG, node_config() if config is None else config)

    @abstractmethod
    def start(self) -> Self:
        """Switch the machine on and wait until it works."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where this machine keeps the box: `disk/` is its writable layer, `containerd/` its /var/lib/containerd."""
        return self._scope.folder

    @property
    def pid(self) -> int:
        """The pid of the machine's PID 1 as this machine counts; another one every time it is switched on."""
        if not self._pid:
            raise RuntimeError("It is off.")
        return self._pid

    @property
    def root(self) -> Path:
        """The running machine's `/` as seen from here. Absolute symbolic links below it lead out of it."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def cri(self) -> CriClient:
        """A client of the machine's CRI."""
        if self._cri is None:
            self._cri = CriClient(self.root / self.socket, self.root)
        return self._cri

    def write(self, path: str, text: str) -> None:
        """Write a file of the machine, on or off; `path` counts from its root."""
        file = (self.root if self._pid else self.folder / "disk") / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine as root: an argv, or a string for `sh -c`. A failure raises with its output.

        env: in addition to a plain PATH, LC_ALL and HOME. timeout: seconds.
        """
        done = subprocess.run(
            self._enter(command),
            input="" if input is None else input,
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
        """Start a command on the machine with pipes for its input and output; end it early with `kill`."""
        return subprocess.Popen(
            self._enter(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **(env or {})},
        )

    def kill(self, process: "subprocess.Popen[str]") -> None:
        """Kill -9 the command of `popen`. The process itself is nsenter, which would leave the command running."""
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.communicate()

    def serve(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a program of this machine in the other's network (its 127.0.0.1), until the other is closed.

        It goes on through power cuts. What it prints is part of `logs`.
        """
        script = 'network=$1; shift; exec nsenter --net="$network" env "$@"'
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        words: list[str | Path] = [self._scope.network_namespace, *variables, *argv]
        self._served.append(self._scope.popen(script, *words, log=self.folder / "logs/served"))
        return self._served[-1]

    def ctr(self, *arguments: str | Path) -> str:
        """Run the release's `ctr` here against the machine's containerd (paths are those of here); its output."""
        program = releases.program(self.containerd, "ctr")
        command = [program, "--address", self.root / self.socket, "--namespace", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def load(self, *archives: Path) -> None:
        """Load image archives of here into the machine's containerd, and wait until its CRI knows them."""
        for archive in archives:
            self.ctr("images", "import", archive)
        self.wait_for_images(*(name for archive in archives for name in images.names(archive)))

    def wait_for_images(self, *names: str) -> None:
        """Wait until the CRI knows these images.

        It learns of an import by an event: on a loaded machine a pod started right after would not find the image.
        """
        deadline = time.monotonic() + PATIENCE_S
        while missing := set(names) - set(self.cri.images()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The CRI does not know {', '.join(sorted(missing))}.")
            time.sleep(0.02)

    def logs(self) -> str:
        """The end of what was written to the console and by served programs, for the report of a failed test."""
        files = sorted((self.folder / "logs").iterdir())
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-8000:]}" for file in files)

    def cut_power(self) -> None:
        """Kill everything that runs on the machine at once; nothing gets a chance to clean up."""
        if self._cri is not None:
            self._cri.close()
            self._cri = None
        if self._nspawn is not None:
            victim = self._pid or self._nspawn.pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            self._nspawn.wait()
            self._nspawn = None
            self._scope.prune()  # a kubelet of the next boot would take the pods' cgroups for pods
        self._pid = 0

    def close(self) -> None:
        """Switch the machine off and remove everything it had; done twice it does nothing."""
        if not self.folder.exists():
            return
        self.cut_power()
        self._scope.kill()
        for process in self._served:
            process.wait()
        self._scope.close()

    def _power_on(self, *program: str) -> "subprocess.Popen[bytes]":
        """Start nspawn with its last options and the program; `_is_on` tells when there is a PID 1."""
        if self._nspawn is not None:
            raise RuntimeError("It is on.")
        scope = self._scope
        arguments = (scope.folder, self.layers, scope.name, scope.network_namespace)
        self._nspawn = scope.popen(NSPAWN, *arguments, *program, log=self.folder / "logs/console")
        return self._nspawn

    def _is_on(self) -> bool:
        if not self._pid and self._nspawn is not None:
            self._pid = next(filter(_is_init, _children(self._nspawn.pid)), 0)
        return bool(self._pid)

    def _enter(self, command: str | Sequence[str]) -> list[str]:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        return ["nsenter", f"--target={self.pid}", *NAMESPACES, *argv]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_init(pid: int) -> bool:
    """Whether a process is PID 1 of a namespace below ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    pids = next((line.split()[1:] for line in status if line.startswith("NSpid:")), [])
    return len(pids) > 1 and pids[-1] == "1"
