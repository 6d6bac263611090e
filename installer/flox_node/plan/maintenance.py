"""What a Flox node does by itself, with no DaemonSet: at every boot, and once a day."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from flox_node.actions import Action, ImportImage, PlacePayload, RegisterHandler, WritePolicy
from flox_node.actions.create_directory import was_made
from flox_node.actions.mount_nix import NIX
from flox_node.actions.paths import CURRENT
from flox_node.containerd.live import commit, daemon
from flox_node.containerd.live.daemon import Running
from flox_node.environments import collect, work
from flox_node.environments.paths import Paths
from flox_node.errors import FloxNodeError, OutsideError
from flox_node.host import Host
from flox_node.host.lock import exclusive
from flox_node.payload import Manifest
from flox_node.payload.manifest import NAME, parse
from flox_node.payload.place import NIX_ENVIRONMENT, folder_of
from flox_node.plan import heal, labels
from flox_node.plan.planner import inner_runtime
from flox_node.plan.runs import machine_id
from flox_node.plan.steps import Report, carry_out_all, take_back
from flox_node.platforms import DEFAULT_SOCKET
from flox_node.state.ledger import Ledger

DAYS = 30
_DAY_S = 86400.0
_FRESH_S = 600.0  # a sandbox has its root before containerd lists it
_COLLECTION_S = 3600.0


@dataclass(frozen=True)
class Swept:
    """What was let go of: sandboxes without a pod, environments and payloads without a use; bytes that Nix freed."""

    sandboxes: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    payloads: tuple[str, ...] = ()
    nix: str = ""


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

    Nix is asked to only where an install made the store: in a store that was there before, garbage is its owner's.

    Raises:
        OutsideError: containerd or Nix does not answer.
    """
    with exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        if ledger.receipt is None or ledger.interrupted:
            return Swept()
        since = time.time() - days * _DAY_S
        sandboxes = _forget_pods(host, _socket(ledger))
        environments = collect.collect(_paths(host), unused_since=since)
        payloads = _old_payloads(host, ledger, since)
        for payload_id in payloads:
            record = ledger.records[PlacePayload(payload_id).key]
            take_back(host, ledger, record, report, purge=False, waiting=False)
        if payloads:
            _conclude(ledger)
        is_idle = work.sweep(_paths(host))
        nix = _collect_garbage(host) if is_idle and (sandboxes or environments or payloads) else ""
        return Swept(sandboxes, tuple(environments), payloads, nix)


def _forget_pods(host: Host, socket: str) -> tuple[str, ...]:
    known = {sandbox.id for sandbox in daemon.cri(host, socket).sandboxes()}
    return tuple(collect.forget_pods(_paths(host), sandboxes=known, older_than=time.time() - _FRESH_S))


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


def _collect_garbage(host: Host) -> str:
    if not was_made(host, NIX):
        return ""
    program = _manifest(host).entry_points["nix-store"]
    done = host.processes.run([program, "--gc"], env=NIX_ENVIRONMENT, timeout=_COLLECTION_S)
    lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
    if done.returncode != 0:
        raise OutsideError(f"Nix could not collect garbage: {lines[-1] if lines else 'no reason given'}")
    return next((line for line in lines if "freed" in line), "")


def _manifest(host: Host) -> Manifest:
    return parse(host.files.read(f"{CURRENT}/{NAME}"))


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
