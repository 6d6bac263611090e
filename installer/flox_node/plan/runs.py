"""The runs: carrying a plan out under the lock with every step journalled, and taking it back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flox_node import __version__
from flox_node.actions import Action, action_from_json
from flox_node.actions.in_use import bundles_with_shim
from flox_node.containerd.live import commit, daemon
from flox_node.errors import FloxNodeError, InUseError, OutsideError, RefusedError
from flox_node.host import Host
from flox_node.host.lock import GC_LOCK, exclusive
from flox_node.names import HANDLER, SHIM
from flox_node.payload import Payload
from flox_node.plan import heal, labels, saved
from flox_node.plan.planner import Plan, plan_install
from flox_node.plan.saved import SavedPlan
from flox_node.plan.steps import Outcome, Report, StepResult, carry_out_all, inspected, named, take_back
from flox_node.settings import Settings
from flox_node.state.ledger import STATE_DIR, Ledger, Receipt, Record


@dataclass(frozen=True)
class Preview:
    """What an install would do, and the plan that says so."""

    plan: Plan
    steps: tuple[StepResult, ...]


def preview(host: Host, payload: Payload, settings: Settings) -> Preview:
    """What an install would do. Writes nothing, takes no lock.

    Raises:
        FloxNodeError: what an install would refuse for before it writes anything.
    """
    try:
        plan = plan_install(host, payload, settings)
    except FloxNodeError as error:
        raise heal.blame(host, Ledger.load(host.files)) or heal.why_down(host, error, settings.socket) from None
    return Preview(plan, tuple(_previewed(host, action) for action in plan.actions))


def _previewed(host: Host, action: Action[Any]) -> StepResult:
    gap = inspected(host, action)
    if gap is None:
        return StepResult(action.key, action.describe(), Outcome.ALREADY)
    return StepResult(action.key, action.describe(), Outcome.NEEDED, gap.reason, action.preview(gap), paths=gap.paths)


def agreement(host: Host, payload: Payload, settings: Settings, found: Preview, source: str) -> SavedPlan:
    """A preview as a file can hold it, to be installed later as it is. `source` is where the payload is."""
    return saved.saved(
        host,
        payload_id=payload.manifest.id,
        payload=source,
        settings=settings,
        platform=found.plan.detection.platform.name,
        containerd=f"{found.plan.running.status.version} with {found.plan.running.daemon.config_path}",
        steps=found.steps,
    )


def install(
    host: Host, payload: Payload, settings: Settings, report: Report, agreed: SavedPlan | None = None
) -> list[StepResult]:
    """Bring the node to the desired state; a node that is there already is not written to.

    `agreed`: a plan that was saved; only what it says is done.

    Raises:
        RefusedError: the node is no longer what the plan saw.
        FloxNodeError: any of its kinds; what was journalled lets the next install go on and the next uninstall undo it.
    """
    with exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        results: list[StepResult] = []
        try:
            plan = plan_install(host, payload, settings)
        except FloxNodeError as error:
            if agreed is not None or not heal.heal(host, ledger, results.append):
                raise heal.why_down(host, error, settings.socket) from None
            report(results[-1])
            plan = plan_install(host, payload, settings)
        if agreed is not None:
            now = Preview(plan, tuple(_previewed(host, action) for action in plan.actions))
            saved.require_same(agreed, agreement(host, payload, settings, now, agreed.payload))
        results += carry_out_all(host, ledger, plan.actions, report)
        if ledger.interrupted or any(result.outcome is Outcome.DONE for result in results):
            ledger.conclude(receipt(payload, ledger, machine_id=machine_id(host)))
        if settings.repair:
            results.append(_relabel(host, ledger, report))
        return results


def uninstall(
    host: Host, settings: Settings, report: Report, *, purge: bool = False, force: bool = False
) -> list[StepResult]:
    """Take back what installs did, last things first.

    What running containers still need is kept, and the state with it: a later uninstall takes that back.

    Raises:
        InUseError: sandboxes of the handler exist (unless `force`).
        RefusedError: what must not be undone now; or the node has what an install leaves, and no receipt.
        BusyError: another run or a garbage collection.
    """
    with exclusive(host.files, GC_LOCK), exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        if not ledger.records:
            _refuse_without_receipt(host, settings.socket)
            _leave_no_state(host, ledger)
            return []
        if not force:
            _refuse_while_in_use(host, settings.socket or _recorded_socket(ledger))
        was_whole = not ledger.interrupted
        results: list[StepResult] = []
        for record in _reversed(ledger):
            # Folders that hold what is in use wait along; otherwise what is not empty is no longer ours alone.
            waiting = bool(ledger.kept)
            try:
                results.append(take_back(host, ledger, record, report, purge=purge, waiting=waiting))
            except RefusedError:
                if was_whole and not results:
                    ledger.conclude(ledger.receipt)  # nothing was begun
                raise
        if not ledger.kept:
            _leave_no_state(host, ledger)
        return results


def preview_uninstall(host: Host, settings: Settings, *, purge: bool = False, force: bool = False) -> list[StepResult]:
    """What an uninstall would take back, last things first. Writes nothing, takes no lock.

    Raises:
        InUseError, RefusedError: an uninstall would refuse.
    """
    ledger = Ledger.load(host.files)
    if not ledger.records:
        _refuse_without_receipt(host, settings.socket)
    if ledger.records and not force:
        _refuse_while_in_use(host, settings.socket or _recorded_socket(ledger))
    return [_previewed_undo(host, record, purge=purge) for record in _reversed(ledger)]


def _previewed_undo(host: Host, record: Record, *, purge: bool) -> StepResult:
    action = action_from_json(record.action)
    with named(action):
        diff, kept = action.preview_revert(host, record.before, purge=purge)
    outcome, reason = (Outcome.NEEDED, "") if kept is None else (Outcome.KEPT, kept.reason)
    return StepResult(record.key, action.describe(), outcome, reason, diff)


def _relabel(host: Host, ledger: Ledger, report: Report) -> StepResult:
    started = time.monotonic()
    wrong = labels.restore(host, ledger)
    outcome, reason = (Outcome.DONE, f"{wrong} files had another type") if wrong else (Outcome.ALREADY, "")
    seconds = round(time.monotonic() - started, 3)
    result = StepResult("labels", "set the SELinux types of what is ours", outcome, reason, seconds=seconds)
    report(result)
    return result


def _reversed(ledger: Ledger) -> Sequence[Record]:
    return list(reversed(ledger.records.values()))


def _refuse_without_receipt(host: Host, socket: str | None) -> None:
    left = SHIM if host.files.lexists(SHIM) else f"The handler {HANDLER}" if _is_served(host, socket) else ""
    if left:
        raise RefusedError(
            f"{left} is there, but no receipt that tells what an install did on this node: {STATE_DIR} was removed.",
            remedy="Run `flox-node install`: it takes over what is there, and an uninstall can take it back then.",
        )


def _is_served(host: Host, socket: str | None) -> bool:
    try:
        handler = daemon.cri(host, daemon.cri_socket(host, socket)).status().handlers.get(HANDLER)
    except FloxNodeError:
        return False  # there is nobody whom it could be served to
    return handler is not None and handler.binary_name == SHIM


def _leave_no_state(host: Host, ledger: Ledger) -> None:
    if host.files.is_dir(STATE_DIR):
        ledger.conclude(None)
        host.files.remove_tree(STATE_DIR)


def machine_id(host: Host) -> str:
    """Which machine this is; "" in an image of many."""
    return (host.files.read_optional("/etc/machine-id") or b"").decode(errors="replace").strip()


def receipt(payload: Payload, ledger: Ledger, *, machine_id: str) -> Receipt:
    """What an install of this payload leaves, as of now."""
    return Receipt(
        version=__version__,
        payload_id=payload.manifest.id,
        machine_id=machine_id,
        installed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        records=tuple(ledger.records.values()),
    )


def _recorded_socket(ledger: Ledger) -> str | None:
    """The socket that the handler was registered behind; a kubelet that is down says nothing."""
    sockets = [record.action["socket"] for record in ledger.records.values() if record.action.get("socket")]
    return sockets[-1] if sockets else None


def _refuse_while_in_use(host: Host, socket: str | None) -> None:
    try:
        sandboxes = daemon.cri(host, daemon.cri_socket(host, socket)).sandboxes()
    except OutsideError:
        # It need not answer: a bundle says whose it is.
        if tasks := bundles_with_shim(host):
            raise InUseError(f"{len(tasks)} containers and sandboxes use the handler {HANDLER} on this node.") from None
        return
    users = [f"{each.namespace}/{each.name}" for each in sandboxes if each.handler == HANDLER and each.ready]
    if users:
        raise InUseError(f"{len(users)} pods use the handler {HANDLER} on this node: {', '.join(sorted(users)[:10])}.")
