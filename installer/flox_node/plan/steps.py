"""One step of a run: an action carried out or taken back, journalled, and what became of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flox_node.actions import Action, Gap, action_from_json, action_to_json
from flox_node.errors import FloxNodeError
from flox_node.host import Host
from flox_node.state.ledger import STATE_DIR, Ledger, Record


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

    `reason` says why it was needed, `steps` what it told on its way; in a preview `diff` is what it would write, and
    `paths` are what is not as wanted.
    """

    key: str
    description: str
    outcome: Outcome
    reason: str = ""
    diff: str = ""
    seconds: float = 0.0
    steps: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


Report = Callable[[StepResult], None]


def inspected(host: Host, action: Action[Any]) -> Gap | None:
    """What the node lacks of this action; it may be done here.

    Raises:
        FloxNodeError: it cannot be told, or must not be done here.
    """
    with named(action):
        gap = action.inspect(host)
        if gap is not None:
            action.preflight(host, gap)
    return gap


def carry_out_all(host: Host, ledger: Ledger, actions: Sequence[Action[Any]], report: Report) -> list[StepResult]:
    """Look at everything first, so that what must not be done is found before anything is; then carry all out."""
    gaps = [(action, inspected(host, action)) for action in actions]
    results: list[StepResult] = []
    for action, gap in gaps:
        # What an earlier action did may be what this one lacked.
        changed = any(result.outcome is Outcome.DONE for result in results)
        results.append(carry_out(host, ledger, action, report, *([] if changed else [gap])))
    return results


def carry_out(host: Host, ledger: Ledger, action: Action[Any], report: Report, *looked: Gap | None) -> StepResult:
    """Bring the node where one action wants it, journalled; nothing is written where it is there and recorded.

    `looked`: the gap that a look of this run found; without it the node is looked at now.
    """
    started = time.monotonic()
    record = ledger.records.get(action.key)
    with named(action):
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
def named(action: Action[Any]) -> Iterator[None]:
    """An error of an action says which one it was."""
    try:
        yield
    except FloxNodeError as error:
        error.action = error.action or action.key
        raise


def take_back(host: Host, ledger: Ledger, record: Record, report: Report, *, purge: bool, waiting: bool) -> StepResult:
    """Undo one recorded action, journalled. `waiting`: what holds something that is in use stays along with it."""
    started = time.monotonic()
    action = action_from_json(record.action)
    ledger.reverting(record.key)
    steps: list[str] = []
    with named(action):
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


def _ensure_state_folder(host: Host) -> None:
    # Not an action: the journal of all actions lies in it.
    for folder in ("/var", "/var/lib", STATE_DIR):
        host.files.mkdir(folder, 0o700 if folder == STATE_DIR else 0o755)
