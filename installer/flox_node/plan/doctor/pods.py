"""The node's pods: what they ask for, which of them hang, and what failed lately."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flox_node.containerd.live import daemon
from flox_node.containerd.live.cri import Container, Sandbox
from flox_node.environments.annotations import annotation_faults
from flox_node.host import event_log
from flox_node.plan import records
from flox_node.plan.doctor.check import Check, State, Verdict, skipped, told
from flox_node.plan.doctor.node import Node

_RECENT_S = 86400.0
_SHOWN = 5


def _sandboxes(node: Node) -> list[Sandbox]:
    return node.sandboxes


def decide_annotations(sandboxes: Sequence[Sandbox]) -> Verdict:
    """Each pod's annotations of ours, judged without knowing any environment."""
    causes = [
        f"{sandbox.namespace}/{sandbox.name}: {fault}"
        for sandbox in sandboxes
        if sandbox.ready
        for fault in annotation_faults(sandbox.annotations, sandbox.handler)
    ]
    return told(causes, state=State.WARNING)


@dataclass(frozen=True)
class RestartFacts:
    """The node's sandboxes and containers, and when containerd was started (nanoseconds since the epoch)."""

    started_at: int
    sandboxes: tuple[Sandbox, ...]
    containers: tuple[Container, ...]


def _restart(node: Node) -> RestartFacts:
    started = node.host.processes.started_at(node.daemon.pid) or 0.0
    containers = daemon.cri(node.host, node.socket).containers()
    return RestartFacts(int(started * 1e9), tuple(node.sandboxes), tuple(containers))


def decide_stuck(facts: RestartFacts) -> Verdict:
    """A sandbox from before the restart that is not ready, though nothing in it has come to an end.

    A pod that ran to its end leaves a sandbox that is not ready, too, but its containers have exited.
    """
    open_ended = {each.sandbox_id for each in facts.containers if not each.exited}
    ended = {each.sandbox_id for each in facts.containers} - open_ended
    stuck = [
        f"{sandbox.namespace}/{sandbox.name} ({sandbox.id[:13]})"
        for sandbox in facts.sandboxes
        if not sandbox.ready and sandbox.created_at < facts.started_at and sandbox.id not in ended
    ]
    return told(
        [f"stuck since containerd was started: {', '.join(stuck[:_SHOWN])}"] if stuck else [], state=State.PROBLEM
    )


def _failures(node: Node) -> list[dict[str, Any]] | None:
    return event_log.errors_since(node.host.files, time.time() - _RECENT_S)


def decide_failures(events: list[dict[str, Any]] | None) -> Verdict:
    """What the shim refused or could not do in the last day, each text once, the newest first."""
    if events is None:
        return skipped("no Flox pod was started here yet")
    texts = dict.fromkeys(
        f"{event.get('namespace', '?')}/{event.get('pod', '?')}: {event.get('message', '')}"
        for event in reversed(events)
    )
    return told(list(texts)[:_SHOWN], state=State.WARNING)


def _orphans(node: Node) -> tuple[str, ...]:
    return records.orphans(node.host, node.socket)


def decide_orphans(found: Sequence[str]) -> Verdict:
    """A leak, and a sign that containers were removed behind the runtime's back."""
    shown = ", ".join(found[:_SHOWN])
    return told([f"{len(found)} records belong to no pod: {shown}"] if found else [], state=State.WARNING)


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "annotations",
        "running pods' flox.dev annotations are known and well-formed",
        "correct the pod: the environment is owner/name or owner/name:GENERATION, and the pod needs "
        "runtimeClassName: flox",
        _sandboxes,
        decide_annotations,
    ),
    Check(
        "stuck-sandboxes",
        "no sandbox hangs since containerd was restarted",
        "`crictl stopp ID` and `crictl rmp ID` for each; the kubelet then makes the pod anew",
        _restart,
        decide_stuck,
    ),
    Check(
        "orphan-records",
        "every record of the shim belongs to a pod of the node",
        "nothing has to be done: `flox-node gc`, which runs once a day, and a boot remove them",
        _orphans,
        decide_orphans,
    ),
    Check(
        "recent-failures",
        "no Flox pod failed to start in the last day",
        "each text names its own remedy; `flox-node collect` packs the log",
        _failures,
        decide_failures,
    ),
)
