"""What a node is now, beside what the receipt says it should be. Never writes."""

from __future__ import annotations

from dataclasses import dataclass

from flox_node.containerd.live import daemon
from flox_node.errors import FloxNodeError, RefusedError
from flox_node.host import Host
from flox_node.names import HANDLER
from flox_node.plan import drift
from flox_node.plan.detect import recognise
from flox_node.settings import Settings
from flox_node.state.ledger import Ledger


@dataclass(frozen=True)
class NodeStatus:
    """A node's state. Empty texts where there is nothing to tell."""

    installed: bool
    interrupted: bool
    handler_live: bool
    version: str
    payload_id: str
    containerd_version: str
    containerd_config: str
    drift: tuple[drift.Drift, ...]
    problem: str = ""
    platform: str = ""


def status(host: Host, settings: Settings) -> NodeStatus:
    """Compare the node with its receipt, and ask the CRI which handlers are live.

    Raises:
        CorruptError, RefusedError: the receipt cannot be read.
    """
    ledger = Ledger.load(host.files)
    version = config = problem = platform = ""
    live = False
    try:
        socket = daemon.cri_socket(host, settings.socket)
        platform = _platform(host, socket, settings)
        config = daemon.find(host, socket, patience_s=0).config_path
        running = daemon.cri(host, socket).status()
        version, live = running.version, HANDLER in running.handlers
    except FloxNodeError as error:
        problem = error.cause
    receipt = ledger.receipt
    return NodeStatus(
        installed=receipt is not None,
        interrupted=ledger.interrupted,
        handler_live=live,
        version=receipt.version if receipt else "",
        payload_id=receipt.payload_id if receipt else "",
        containerd_version=version,
        containerd_config=config,
        drift=drift.find(host, ledger),
        problem=problem,
        platform=platform,
    )


def _platform(host: Host, socket: str, settings: Settings) -> str:
    try:
        return recognise(host, socket=socket, named=settings.platform).platform.name
    except RefusedError:
        return ""  # signs that contradict each other: an install was told, and the receipt knows what it did
