"""What a platform is: data, and the one decision that is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who asks for a folder only (a pod that waits) does not pay for the model of configurations
    from flox_node.containerd.config.effective import Reader
    from flox_node.containerd.config.registration import Registration
    from flox_node.containerd.config.version import ContainerdVersion


DEFAULT_SOCKET = "/run/containerd/containerd.sock"
KUBELET = "kubelet"
"""The kubelet as a program of its own."""


class SignKind(StrEnum):
    """Where a sign is looked for."""

    SOCKET = "socket"  # the kubelet's CRI socket
    UNIT = "unit"  # the systemd unit of the process that serves it
    PROGRAM = "program"  # that process' executable
    CONFIG = "config"  # the configuration that it was started with
    FILE = "file"  # a file or folder of the node
    OS = "os"  # a line of /etc/os-release
    ROOT = "root"  # what the root file system is mounted from


LIVE = frozenset({SignKind.SOCKET, SignKind.UNIT, SignKind.PROGRAM, SignKind.CONFIG})
"""Signs of what runs now. Files may be left over from another installation; these cannot."""


@dataclass(frozen=True)
class Sign:
    """A pattern (as in a shell, several with `|` between them) for one kind of fact."""

    kind: SignKind
    pattern: str

    def __str__(self) -> str:
        return f"{self.kind} {self.pattern}"


class Layer(IntEnum):
    """What lies inside what: the highest layer that is found is what the node is (k3s in kind is k3s)."""

    FALLBACK = 0  # any node with a containerd of its own
    HOST = 1  # an operating system, or a cloud's node
    CONTAINER = 2  # a node in a container
    TOOL = 3  # built on such a container (minikube on kind's)
    DISTRIBUTION = 4  # brings its own containerd
    REFUSED = 5  # whatever runs on it, nothing can be installed there


@dataclass(frozen=True)
class Refusal:
    """Why nothing can be done here, and what to do instead."""

    reason: str
    instead: str


def _plain(config: str, _reader: Reader, _version: ContainerdVersion) -> Registration:
    from flox_node.containerd.config.registration import Plain

    return Plain(config)


@dataclass(frozen=True)
class Renderer:
    """Who makes files of containerd's configuration anew, and by what a file tells that it was so.

    `files` is a pattern of paths. A file is its work if one of the `marks` (in lower case) stands in its first lines;
    without marks, if it was changed while the node booted and the node has one of the platform's files.
    """

    name: str
    files: str
    when: str
    marks: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Platform:
    """One kind of node.

    It is found when `needed` of its `signs` hold. `register` decides how a handler is registered, from the path of the
    configuration that containerd was started with, the node's files and containerd's version; `durable` names the file
    that says the handler for good, `rewritten` who writes the configuration anew and when (in words), `renderer` by
    what that is recognised.

    The rest is where things lie, also for who does not know yet (or any more) which platform the node is, and asks all
    of them: the CRI `socket`, the `units` of containerd and the kubelet, the folder of containerd's `state`, its `logs`
    beside the journal, the `kubelets` (programs that are one or hold one; `kubelet_commands` are their first words when
    they are at it), the `kubelet_root` with the pods' volumes, and the files that give the kubelet its settings:
    `kubelet_flags` hold command line flags or the keys of the same names, `kubelet_configs` a KubeletConfiguration.
    `restart_deadline_s`: within it the CRI must answer after a restart of containerd's unit, which on some platforms is
    a control plane's unit too.
    """

    name: str
    title: str
    layer: Layer
    signs: tuple[Sign, ...]
    durable: str
    rewritten: str = "nobody"
    renderer: Renderer | None = None
    socket: str = DEFAULT_SOCKET
    units: tuple[str, ...] = ("containerd.service", "kubelet.service")
    state: str = "/run/containerd"
    logs: tuple[str, ...] = ()
    kubelets: tuple[str, ...] = (KUBELET,)
    kubelet_commands: tuple[str, ...] = ()
    kubelet_root: str = "/var/lib/kubelet"
    kubelet_flags: tuple[str, ...] = ()
    kubelet_configs: tuple[str, ...] = ()
    restart_deadline_s: float = 60.0
    needed: int = 2
    refusal: Refusal | None = None
    register: Callable[[str, Reader, ContainerdVersion], Registration] = _plain


def refused(name: str, title: str, signs: tuple[Sign, ...], reason: str, instead: str) -> Platform:
    """A platform where nothing is done. One sign is enough: a refusal writes nothing, and can be overridden."""
    return Platform(name, title, Layer.REFUSED, signs, "none", needed=1, refusal=Refusal(reason, instead))
