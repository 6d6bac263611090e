"""The containerd in question: the process that serves the kubelet's CRI socket, never what PATH finds.

A host may run several (Docker's beside k3s' own), and the one on PATH may be none of them: see anchors such as
NVIDIA/nvidia-container-toolkit issues 982 and gpu-operator 1323.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live.cri import CriClient, CriStatus
from flox_node.errors import OutsideError, RefusedError, UsageError
from flox_node.host import Host, RunningProcess
from flox_node.platforms import DEFAULT_SOCKET, Platform, facts, kubelet_holder

DEFAULT_CONFIG = "/etc/containerd/config.toml"
_ENDPOINT = "container-runtime-endpoint"


@dataclass(frozen=True)
class Daemon:
    """A running containerd. Paths are the node's."""

    socket: str
    pid: int
    exe: str
    config_path: str
    unit: str
    search_path: tuple[str, ...]


@dataclass(frozen=True)
class Running:
    """A containerd that answers: which one it is, and what it said of itself when it was looked at."""

    daemon: Daemon
    status: CriStatus

    @property
    def version(self) -> ContainerdVersion:
        """Its version, as its CRI tells it."""
        return ContainerdVersion.parse(self.status.version)


def cri_socket(host: Host, named: str | None = None) -> str:
    """The kubelet's CRI socket: `named`, else what the running kubelet was told, else the only one that is served.

    Raises:
        RefusedError: kubelets tell different ones, or several are served and no kubelet runs.
    """
    if named is not None:
        return named
    told = {socket: kubelet for kubelet, socket in _kubelets(host)}
    if not told:
        served = [
            socket for socket in facts(lambda each: [each.socket]) if host.processes.socket_owner(socket) is not None
        ]
        if len(served) > 1:
            raise RefusedError(
                f"No kubelet runs, and several containerds do: {', '.join(served)}.",
                remedy="Start the kubelet, or name its socket with --socket.",
            )
        return served[0] if served else DEFAULT_SOCKET
    if len(told) > 1:
        who = "; ".join(f"{kubelet.exe} (pid {kubelet.pid}) uses {socket}" for socket, kubelet in told.items())
        raise RefusedError(f"Several kubelets use different sockets: {who}.", remedy="Name one with --socket.")
    return next(iter(told))


def kubelets(host: Host) -> list[RunningProcess]:
    """The processes that are, or hold, a kubelet."""
    return host.processes.named(*_programs())


def _programs() -> tuple[str, ...]:
    return facts(lambda platform: platform.kubelets)


def _kubelets(host: Host) -> Iterator[tuple[RunningProcess, str]]:
    for process in kubelets(host):
        words = " ".join(process.argv).split()  # k3s sets its title: all in one word
        called = posixpath.basename(words[0]) if words else ""
        holder = kubelet_holder(called if called in _programs() else posixpath.basename(process.exe))
        if holder and holder.kubelet_commands and not {*words[1:2]} & {*holder.kubelet_commands}:
            continue  # `k3s kubectl`, say
        yield process, _endpoint(host, holder, words) or (holder.socket if holder else DEFAULT_SOCKET)


def _endpoint(host: Host, holder: Platform | None, words: list[str]) -> str | None:
    """What a kubelet was told: a flag wins over the configuration's drop-ins, those over the file itself."""

    def text(path: str) -> str:
        return (host.files.read_optional(path) or b"").decode(errors="replace")

    told = []
    if holder and holder.kubelet_commands:
        told = [_configured(text(file), _ENDPOINT) for file in holder.kubelet_flags]
    else:
        files = [*_values(words, "config")]
        for folder in _values(words, "config-dir"):
            files += [f"{folder}/{name}" for name in host.files.listdir(folder) if name.endswith((".conf", ".json"))]
        told = [_configured(text(file), "containerRuntimeEndpoint") for file in files]
    arguments = [word for file in _values(words, "kubelet-args-file") for word in text(file).split()]
    told += [*_values([*arguments, *words], _ENDPOINT)]
    given = [endpoint for endpoint in told if endpoint]
    return _socket_path(given[-1]) if given else None


def _configured(text: str, key: str) -> str:
    """A top-level key of a configuration in YAML or JSON; "" without it."""
    try:
        document = json.loads(text)
        return str(document.get(key) or "") if isinstance(document, dict) else ""
    except ValueError:
        found = re.search(rf"""^{key}:\s*["']?([^"'\s#]+)""", text, re.MULTILINE)
        return found[1] if found else ""


def _socket_path(endpoint: str) -> str:
    path = endpoint.strip("\"'").removeprefix("unix://").replace("${SNAP_COMMON}", "/var/snap/microk8s/common")
    return path.replace("/var/run/", "/run/", 1) if path.startswith("/var/run/") else path


def _values(words: Sequence[str], flag: str) -> Iterator[str]:
    """The values of a long flag, written as `--flag value` or `--flag=value`."""
    for index, word in enumerate(words):
        if word == f"--{flag}" and index + 1 < len(words):
            yield words[index + 1]
        elif word.startswith(f"--{flag}="):
            yield word.partition("=")[2]


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
    exe = program_of(host, process)
    if exe is None:
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
        exe=exe,
        config_path=config_argument(process.argv) or DEFAULT_CONFIG,
        unit=process.unit,
        search_path=process.search_path,
    )


def look(host: Host, socket: str, *, patience_s: float = 0.0) -> Running:
    """The containerd behind `socket` and what its CRI says; it gets `patience_s` from its start on to answer.

    Raises:
        RefusedError: see `find`.
        OutsideError: the CRI does not answer.
    """
    found = find(host, socket)
    started = host.processes.started_at(found.pid)
    rest = patience_s if started is None else min(patience_s, started + patience_s - time.time())
    return Running(found, cri(host, socket).wait(rest))


def version_of(host: Host, program: str) -> ContainerdVersion:
    """The version that a containerd's program tells: it does so also where its CRI does not answer.

    Raises:
        OutsideError: it does not run, or tells none.
    """
    said = host.processes.run([program, "--version"], timeout=10).stdout.decode(errors="replace")
    try:
        return ContainerdVersion.parse(said)
    except UsageError as error:
        raise OutsideError(f"{program} does not tell its version.") from error


def cri(host: Host, socket: str) -> CriClient:
    """A client of the CRI behind the node's `socket`."""
    return CriClient(host.files.real(socket))


def program_of(host: Host, process: RunningProcess) -> str | None:
    """The path of the containerd that the process runs; None where it is none."""
    if posixpath.basename(process.exe) == "containerd":
        return process.exe
    # One program with many names (k3s of old): the name that it was called by is a symlink beside it.
    sibling = posixpath.join(posixpath.dirname(process.exe), "containerd")
    called = posixpath.basename(process.argv[0]) if process.argv else ""
    return sibling if called == "containerd" and host.files.exists(sibling) else None


def config_argument(argv: tuple[str, ...]) -> str | None:
    """The configuration that a containerd's command line names, None where it names none."""
    for index, word in enumerate(argv):
        if word in ("-c", "--config", "-config") and index + 1 < len(argv):
            return argv[index + 1]
        for prefix in ("-c=", "--config=", "-config="):
            if word.startswith(prefix):
                return word.removeprefix(prefix)
    return None
