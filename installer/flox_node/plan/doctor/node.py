"""The node as the checks look at it: each fact is found out once, and a fact that cannot be had says why each time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from flox_node.containerd.config.effective import Effective, load
from flox_node.containerd.config.registration import Registration
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live import daemon as containerd
from flox_node.containerd.live.cri import CriStatus, Sandbox
from flox_node.errors import FloxNodeError, OutsideError
from flox_node.host import Host, RunningProcess
from flox_node.plan.detect import recognise
from flox_node.settings import Settings
from flox_node.state.ledger import Ledger

_CONTAINERD_PATH = ("/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/bin")

T = TypeVar("T")


class Node:
    """What is known of one node during one examination. `deep`: digests are asked for, too."""

    def __init__(self, host: Host, settings: Settings, *, deep: bool = False) -> None:
        self.host, self.settings, self.deep = host, settings, deep

    @property
    def daemon(self) -> containerd.Daemon:
        """The containerd behind the kubelet's socket.

        Raises:
            RefusedError: there is none.
        """
        return _value(self._daemon)

    @property
    def status(self) -> CriStatus:
        """What the CRI says.

        Raises:
            OutsideError: it does not answer.
        """
        return _value(self._status)

    @property
    def sandboxes(self) -> list[Sandbox]:
        """All sandboxes.

        Raises:
            OutsideError: the CRI does not answer.
        """
        return _value(self._sandboxes)

    @property
    def ledger(self) -> Ledger:
        """The receipt and the journal.

        Raises:
            CorruptError, RefusedError: they cannot be read.
        """
        return _value(self._ledger)

    @property
    def socket(self) -> str:
        """The kubelet's CRI socket.

        Raises:
            RefusedError: it cannot be told which one it is.
        """
        return containerd.cri_socket(self.host, self.settings.socket)

    @property
    def installed(self) -> bool:
        """Whether an install ended here; False, too, where that cannot be read."""
        return not isinstance(self._ledger, FloxNodeError) and self._ledger.receipt is not None

    @cached_property
    def kubelets(self) -> list[RunningProcess]:
        """The processes that are, or hold, a kubelet."""
        return containerd.kubelets(self.host)

    @cached_property
    def config_path(self) -> str:
        """containerd's root configuration: of the running one, else of the one we registered with, else the usual."""
        if isinstance(self._daemon, containerd.Daemon):
            return self._daemon.config_path
        records = [] if isinstance(self._ledger, FloxNodeError) else list(self._ledger.records.values())
        for record in records:
            registration = record.action.get("registration")
            if isinstance(registration, dict) and registration.get("config"):
                return str(registration["config"])
        return containerd.DEFAULT_CONFIG

    @property
    def registration(self) -> Registration:
        """How the handler would be registered here.

        Raises:
            RefusedError: there is no containerd, or signs of platforms contradict each other.
        """
        platform = recognise(self.host, socket=self.socket, named=self.settings.platform).platform
        return platform.register(self.daemon.config_path, self.host.files, self._version())

    @cached_property
    def effective(self) -> Effective:
        """What containerd makes, or would make, of its configuration.

        Raises:
            OutsideError: which version it is cannot be found out.
        """
        return load(self.config_path, self.host.files, self._version())

    def _version(self) -> ContainerdVersion:
        if isinstance(self._status, CriStatus):
            return ContainerdVersion.parse(self._status.version)
        running = self._daemon.exe if isinstance(self._daemon, containerd.Daemon) else None
        program = running or self.host.processes.which("containerd", _CONTAINERD_PATH)
        if program is None:
            raise OutsideError("There is no containerd on this node's usual paths.")
        return containerd.version_of(self.host, program)

    @cached_property
    def _daemon(self) -> containerd.Daemon | FloxNodeError:
        return _attempt(lambda: containerd.find(self.host, self.socket, patience_s=0))

    @cached_property
    def _status(self) -> CriStatus | FloxNodeError:
        return _attempt(lambda: containerd.cri(self.host, self.socket).status())

    @cached_property
    def _sandboxes(self) -> list[Sandbox] | FloxNodeError:
        return _attempt(lambda: containerd.cri(self.host, self.socket).sandboxes())

    @cached_property
    def _ledger(self) -> Ledger | FloxNodeError:
        return _attempt(lambda: Ledger.load(self.host.files))


def _attempt(find: Callable[[], T]) -> T | FloxNodeError:
    try:
        return find()
    except FloxNodeError as error:
        return error


def _value(found: T | FloxNodeError) -> T:
    if isinstance(found, FloxNodeError):
        raise found
    return found
