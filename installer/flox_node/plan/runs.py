"""The runs: carrying a plan out under the lock with every step journalled, and taking it back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from flox_node import __version__
from flox_node.actions import Action, Gap, action_from_json, action_to_json
from flox_node.containerd.live import commit, daemon
from flox_node.errors import FloxNodeError, InUseError
from flox_node.host import Host
from flox_node.host.lock import exclusive
from flox_node.payload import Payload
from flox_node.plan import labels
from flox_node.plan.planner import HANDLER, Plan, Settings, plan_install
from flox_node.state.ledger import STATE_DIR, Ledger, Receipt, Record


class Outcome(StrEnum):
    """What became of an action in a run."""

    DONE = "done"
    ALREADY = "already"
    NEEDED = "needed"
    REVERTED = "reverted"
    KEPT = "kept"


@dataclass(frozen=True)
class StepResult:
    """One action's result.

    `reason` says why it was needed, `diff` what it would write (in a preview), `steps` what it told on its way.
    """

    key: str
    description: str
    outcome: Outcome
    reason: str = ""
    diff: str = ""
    seconds: float = 0.0
    steps: tuple[str, ...] = ()


Report = Callable[[StepResult], None]


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
    plan = plan_install(host, payload, settings)
    return Preview(plan, tuple(_previewed(action, action.inspect(host)) for action in plan.actions))


def _previewed(action: Action[Any], gap: Gap | None) -> StepResult:
    if gap is None:
        return StepResult(action.key, action.describe(), Outcome.ALREADY)
    return StepResult(action.key, action.describe(), Outcome.NEEDED, gap.reason, action.preview(gap))


def install(host: Host, payload: Payload, settings: Settings, report: Report) -> list[StepResult]:
    """Bring the node to the desired state; a node that is there already is not written to.

    Raises:
        FloxNodeError: any of its kinds; what was journalled lets the next install go on and the next uninstall undo it.
    """
    with exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        results = carry_out_all(host, ledger, plan_install(host, payload, settings).actions, report)
        if ledger.interrupted or any(result.outcome is Outcome.DONE for result in results):
            ledger.conclude(receipt(payload, ledger, machine_id=machine_id(host)))
        if settings.repair:
            results.append(_relabel(host, ledger, report))
        return results


def carry_out_all(host: Host, ledger: Ledger, actions: Sequence[Action[Any]], report: Report) -> list[StepResult]:
    """Look at everything first, so that what must not be done is found before anything is; then carry all out."""
    gaps = []
    for action in actions:
        with _named(action):
            gap = action.inspect(host)
            if gap is not None:
                action.preflight(host, gap)
            gaps.append((action, gap))
    results: list[StepResult] = []
    for action, gap in gaps:
        # What an earlier action did may be what this one lacked.
        changed = any(result.outcome is Outcome.DONE for result in results)
        results.append(carry_out(host, ledger, action, report, *([] if changed else [gap])))
    return results


def uninstall(
    host: Host, settings: Settings, report: Report, *, purge: bool = False, force: bool = False
) -> list[StepResult]:
    """Take back what installs did, last things first.

    What running containers still need is kept, and the state with it: a later uninstall takes that back.

    Raises:
        InUseError: sandboxes of the handler exist (unless `force`).
    """
    with exclusive(host.files):
        commit.settle(host)
        ledger = Ledger.load(host.files)
        if not ledger.records:
            _leave_no_state(host, ledger)
            return []
        if not force:
            _refuse_while_in_use(host, settings.socket or _recorded_socket(ledger))
        results = []
        for record in _reversed(ledger):
            # Folders that hold what is in use wait along; otherwise what is not empty is no longer ours alone.
            waiting = bool(ledger.kept)
            results.append(take_back(host, ledger, record, report, purge=purge, waiting=waiting))
        if not ledger.kept:
            _leave_no_state(host, ledger)
        return results


def carry_out(host: Host, ledger: Ledger, action: Action[Any], report: Report, *looked: Gap | None) -> StepResult:
    """Bring the node where one action wants it, journalled; nothing is written where it is there and recorded.

    `looked`: the gap that a look of this run found; without it the node is looked at now.
    """
    started = time.monotonic()
    record = ledger.records.get(action.key)
    with _named(action):
        gap = looked[0] if looked else action.inspect(host)
        if gap is None and record is not None and record.done:
            result = StepResult(action.key, action.describe(), Outcome.ALREADY)
        else:
            before = action.capture(host, gap, record.before if record else None)
            _ensure_state_folder(host)
            ledger.begin(action.key, action_to_json(action), before)
            steps: list[str] = []

            def progress(step: str) -> None:
                ledger.step(action.key, step)
                steps.append(step)

            if gap is not None:
                action.execute(host, gap, progress)
            ledger.done(action.key)
            reason = gap.reason if gap is not None else "it was there, but not recorded"
            seconds = round(time.monotonic() - started, 3)
            result = StepResult(action.key, action.describe(), Outcome.DONE, reason, "", seconds, tuple(steps))
    report(result)
    return result


@contextlib.contextmanager
def _named(action: Action[Any]) -> Iterator[None]:
    """An error of an action says which one it was."""
    try:
        yield
    except FloxNodeError as error:
        error.action = error.action or action.key
        raise


def _relabel(host: Host, ledger: Ledger, report: Report) -> StepResult:
    started = time.monotonic()
    wrong = labels.restore(host, ledger)
    outcome, reason = (Outcome.DONE, f"{wrong} files had another type") if wrong else (Outcome.ALREADY, "")
    seconds = round(time.monotonic() - started, 3)
    result = StepResult("labels", "set the SELinux types of what is ours", outcome, reason, seconds=seconds)
    report(result)
    return result


def take_back(host: Host, ledger: Ledger, record: Record, report: Report, *, purge: bool, waiting: bool) -> StepResult:
    """Undo one recorded action, journalled. `waiting`: what holds something that is in use stays along with it."""
    started = time.monotonic()
    action = action_from_json(record.action)
    ledger.reverting(record.key)
    steps: list[str] = []
    with _named(action):
        for owned in action.owns(host, record.before):
            host.files.discard_leftover(owned.path)
        kept = action.revert(host, record.before, steps.append, purge=purge)
    if kept is not None and (kept.waits or waiting):
        ledger.keep(record.key, kept.reason)
    else:
        ledger.reverted(record.key)
    seconds = round(time.monotonic() - started, 3)
    outcome, reason = (Outcome.REVERTED, "") if kept is None else (Outcome.KEPT, kept.reason)
    result = StepResult(record.key, action.describe(), outcome, reason, "", seconds, tuple(steps))
    report(result)
    return result


def _reversed(ledger: Ledger) -> Sequence[Record]:
    return list(reversed(ledger.records.values()))


def _ensure_state_folder(host: Host) -> None:
    # Not an action: the journal of all actions lies in it.
    for folder in ("/var", "/var/lib", STATE_DIR):
        host.files.mkdir(folder, 0o700 if folder == STATE_DIR else 0o755)


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
    users = [
        f"{sandbox.namespace}/{sandbox.name}"
        for sandbox in daemon.cri(host, daemon.cri_socket(host, socket)).sandboxes()
        if sandbox.handler == HANDLER and sandbox.ready
    ]
    if users:
        raise InUseError(f"{len(users)} pods use the handler {HANDLER} on this node: {', '.join(sorted(users)[:10])}.")
