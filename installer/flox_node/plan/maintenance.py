"""What a Flox node does by itself, with no DaemonSet: at every boot, and once a day."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from flox_node.actions import Action, ImportImage, PlacePayload, RegisterHandler, WritePolicy
from flox_node.actions.mount_nix import NIX
from flox_node.containerd.live import commit, daemon
from flox_node.containerd.live.daemon import Running
from flox_node.environments import events, fetch, grants, work
from flox_node.environments import gc as cached
from flox_node.environments.paths import Paths
from flox_node.errors import BusyError, FloxNodeError
from flox_node.host import Host
from flox_node.host.lock import GC_LOCK, exclusive
from flox_node.host.space import free_ratios
from flox_node.names import CURRENT
from flox_node.payload.place import folder_of
from flox_node.plan import heal, labels, records, room
from flox_node.plan.planner import inner_runtime
from flox_node.plan.room import Freed
from flox_node.plan.runs import machine_id
from flox_node.plan.steps import Report, carry_out_all, take_back
from flox_node.platforms import DEFAULT_SOCKET
from flox_node.state.ledger import Ledger

DAYS = 30
_DAY_S = 86400.0
_FRESH_S = 600.0  # a sandbox has its root before containerd lists it


@dataclass(frozen=True)
class Swept:
    """What was let go of: sandboxes without a pod, environments and payloads without a use; what Nix freed.

    `short` says that there is no room all the same.
    """

    sandboxes: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    payloads: tuple[str, ...] = ()
    nix: str = ""
    short: str = ""


def boot(host: Host, report: Report) -> Swept:
    """Put right what a boot or an upgrade of the distribution changes: the OCI runtime's place, the image, dead roots.

    Raises:
        OutsideError: containerd does not answer.
    """
    with exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        if ledger.receipt is None or ledger.interrupted:
            return Swept()  # an install that was killed is finished or undone as a whole
        socket = _socket(ledger)
        running, registration = _settled_containerd(host, ledger, socket, report)
        actions: tuple[Action[Any], ...] = (WritePolicy(inner_runtime(host, running)), ImportImage(socket))
        is_first = not ledger.receipt.machine_id  # of a node whose image we were put into
        recorded = [action for action in actions if is_first or action.key in ledger.records]
        carry_out_all(host, ledger, [*recorded, *registration], report)
        if is_first:
            labels.restore(host, ledger)
            ledger.receipt = dataclasses.replace(ledger.receipt, machine_id=machine_id(host))
        if is_first or ledger.changed:
            _conclude(ledger)
        return Swept(sandboxes=_forget_pods(host, socket))


def _settled_containerd(
    host: Host, ledger: Ledger, socket: str, report: Report
) -> tuple[Running, tuple[RegisterHandler, ...]]:
    """The containerd that answers, and the registration where it has to be made anew for it: it is another release."""
    found = heal.registered(ledger)
    if heal.blame(host, ledger, certainly=True):  # it need not be waited for
        heal.heal(host, ledger, report)
    try:
        running = daemon.look(host, socket, patience_s=30.0)
    except FloxNodeError:
        if not heal.heal(host, ledger, report):
            raise
        running = daemon.look(host, socket, patience_s=30.0)
    if found is None or found[1].version == running.status.version:
        return running, ()
    return running, (dataclasses.replace(found[1], version=running.status.version, running=running),)


def gc(host: Host, report: Report, *, days: float = DAYS) -> Swept:
    """Let go of what nothing has used for `days`, and have Nix remove what is rooted no more.

    Where room is short it goes on, with what was used longest ago, until there is room. The node's lock is held for the
    payloads only: nobody who installs waits for the rest. Nix removes something only where an install made the store.

    Raises:
        BusyError: another collection runs, or a run of an install.
        OutsideError: containerd or Nix does not answer.
    """
    with exclusive(host.files, GC_LOCK):
        with exclusive(host.files):
            ledger = Ledger.load(host.files)
        if ledger.receipt is None or ledger.interrupted:
            return Swept()
        began = time.monotonic()
        since = time.time() - days * _DAY_S
        paths = _paths(host)
        payloads: tuple[str, ...] = ()
        sandboxes = _forget_pods(host, _socket(ledger))
        environments = cached.let_go(cached.unused(paths, since=since), paths, unused_since=since)
        strays = cached.forget_strays(paths)
        with contextlib.suppress(BusyError):  # an install began meanwhile; the payloads go another day
            payloads = _forget_payloads(host, report, since)
        freed = Freed()
        work.sweep(paths)
        fetch.sweep(paths)
        grants.sweep(paths)
        if room.is_ours(host):
            if sandboxes or environments or payloads or strays or room.lacking(host):
                freed = room.collect_garbage(host)
            more, freed_more = room.make_room(host, paths, fresh_s=_FRESH_S)
            environments, freed = list(dict.fromkeys([*environments, *more])), freed + freed_more
        swept = Swept(sandboxes, tuple(environments), payloads, str(freed), _short(host))
        events.log(
            "gc",
            paths,
            level="warning" if swept.short else "info",
            environments=list(swept.environments),
            message=", ".join(filter(None, (swept.nix, swept.short))),
            ms=round((time.monotonic() - began) * 1000),
        )
        return swept


def _short(host: Host) -> str:
    """What to say where a collection has not made room."""
    if room.lacking(host) is None:
        return ""
    of_bytes, of_inodes = free_ratios(host.files.real(NIX))
    return (
        f"{of_bytes:.0%} of the bytes and {of_inodes:.0%} of the inodes of the store's file system are free, and all "
        "that is left is in use: remove other files there, or put the store on a larger one"
    )


def _forget_pods(host: Host, socket: str) -> tuple[str, ...]:
    for path in records.orphans(host, socket):
        host.files.remove(path)
    known = {sandbox.id for sandbox in daemon.cri(host, socket).sandboxes()}
    return tuple(cached.forget_pods(_paths(host), sandboxes=known, older_than=time.time() - _FRESH_S))


def _forget_payloads(host: Host, report: Report, since: float) -> tuple[str, ...]:
    with exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        if ledger.receipt is None or ledger.interrupted:
            return ()
        payloads = _old_payloads(host, ledger, since)
        for payload_id in payloads:
            record = ledger.records[PlacePayload(payload_id).key]
            take_back(host, ledger, record, report, purge=False, waiting=False)
        if payloads:
            _conclude(ledger)
        return payloads


def _old_payloads(host: Host, ledger: Ledger, since: float) -> tuple[str, ...]:
    current = (host.files.readlink(CURRENT) or "").rpartition("/")[2]
    old = []
    for record in ledger.records.values():
        if record.action["kind"] != PlacePayload.kind:
            continue
        payload_id = str(record.action["payload_id"])
        if payload_id == current:
            continue
        folder = host.files.lstat(folder_of(payload_id))
        if folder is None or folder.st_mtime < since:
            old.append(payload_id)
    return tuple(old)


def _conclude(ledger: Ledger) -> None:
    assert ledger.receipt is not None, "the callers checked it"
    ledger.conclude(dataclasses.replace(ledger.receipt, records=tuple(ledger.records.values())))


def _socket(ledger: Ledger) -> str:
    for record in ledger.records.values():
        if record.action["kind"] == "register-handler":
            return str(record.action["socket"])
    return DEFAULT_SOCKET


def _paths(host: Host) -> Paths:
    root = str(host.files.root)
    return Paths("" if root == "/" else root)
