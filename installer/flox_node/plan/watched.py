"""What has to be watched on a node to notice that it is no longer as its receipt says."""

from __future__ import annotations

import contextlib
import posixpath
from dataclasses import dataclass

from flox_node.actions import action_from_json
from flox_node.containerd.live import daemon
from flox_node.errors import FloxNodeError
from flox_node.host import Host
from flox_node.names import SHIM
from flox_node.state.ledger import RECEIPT, Ledger
from flox_node.state.policy import PATH as POLICY


@dataclass(frozen=True)
class Watch:
    """Folders whose every change counts (containerd's configuration), single paths, and who runs there now.

    `paths` are compared by size, times and inode; a `/proc/PID` among them changes when that process ends. `identity`
    names this boot and this kubelet: with another one the node may have been registered anew.
    """

    folders: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    identity: str = ""


def find(host: Host) -> Watch:
    """What to watch on this node; on one that is not installed only its containerd and its kubelet."""
    try:
        records = list(Ledger.load(host.files).records.values())
        actions = [action_from_json(record.action) for record in records]
    except FloxNodeError:
        records, actions = [], []  # `look` says what is wrong with the receipt
    folders: set[str] = set()
    paths = {RECEIPT, POLICY, SHIM}
    for record, action in zip(records, actions, strict=True):
        for owned in action.owns(host, record.before):
            if owned.watched:
                paths.add(owned.path)
            if owned.shared:
                folders.add(posixpath.dirname(owned.path))
    running, identity = _running(host)
    return Watch(tuple(sorted(folders)), tuple(sorted(paths | running)), identity)


def _running(host: Host) -> tuple[set[str], str]:
    boot = (host.files.read_optional("/proc/sys/kernel/random/boot_id") or b"").decode().strip()
    kubelets = daemon.kubelets(host)
    paths = {f"/proc/{process.pid}" for process in kubelets}
    with contextlib.suppress(FloxNodeError):
        # The socket is made anew by every start of containerd, an upgrade of it included.
        paths.add(daemon.cri_socket(host))
    started = [f"{process.pid}@{host.processes.started_at_tick(process.pid)}" for process in kubelets]
    return paths, " ".join([boot, *started])
