"""The node's pods: what they ask for, which of them hang, and what failed lately."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flox_node.containerd import daemon
from flox_node.containerd.cri import Container, Sandbox
from flox_node.plan.doctor.check import Check, State, Verdict, skipped, told
from flox_node.plan.doctor.node import Node
from flox_node.plan.planner import HANDLER

EVENTS = "/var/log/flox-node/runtime.jsonl"
PREFIX = "flox.dev/"
ENVIRONMENT = "flox.dev/environment"
ANNOTATIONS = (
    ENVIRONMENT,
    "flox.dev/activate-mode",
    "flox.dev/disable-metrics",
    "flox.dev/nix-mutable",
    "flox.dev/skip-containers",
    "flox.dev/skip-containers-exec",
)
_FORM = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[1-9][0-9]*)?")
_RECENT = timedelta(hours=24)
_TAIL = 256 << 10  # bytes of the log that are looked at
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


def annotation_faults(annotations: Mapping[str, str], handler: str) -> list[str]:
    """What is wrong with a pod's `flox.dev/*` annotations under its handler, in words."""
    ours = {key: value for key, value in annotations.items() if key.startswith(PREFIX)}
    if not ours and handler != HANDLER:
        return []
    faults = []
    for key in sorted(ours.keys() - set(ANNOTATIONS)):
        near = difflib.get_close_matches(key, ANNOTATIONS, 1, 0.75)
        faults.append(f"unknown annotation {key}" + (f", meant is perhaps {near[0]}" if near else ""))
    environment = ours.get(ENVIRONMENT)
    if handler != HANDLER:
        return [*faults, f"has {ENVIRONMENT} but not runtimeClassName {HANDLER}"] if environment else faults
    if environment is None:
        faults.append(f"has runtimeClassName {HANDLER} but no {ENVIRONMENT}")
    elif not _FORM.fullmatch(environment):
        right = environment.replace("@", ":", 1)
        hint = f"write {right}" if _FORM.fullmatch(right) else "the form is owner/name or owner/name:3"
        faults.append(f"{ENVIRONMENT} is {environment[:120]!r}: {hint}")
    return faults


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
    data = node.host.files.read_optional(EVENTS)
    if data is None:
        return None
    since = (datetime.now(UTC) - _RECENT).isoformat()
    events = []
    for line in data[-_TAIL:].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the first line of the tail may be half a one
        if isinstance(event, dict) and event.get("level") == "error" and str(event.get("time", "")) >= since:
            events.append(event)
    return events


def decide_failures(events: list[dict[str, Any]] | None) -> Verdict:
    """What the shim refused or could not do in the last day, each text once, the newest first."""
    if events is None:
        return skipped("no Flox pod was started here yet")
    texts = dict.fromkeys(
        f"{event.get('namespace', '?')}/{event.get('pod', '?')}: {event.get('message', '')}"
        for event in reversed(events)
    )
    return told(list(texts)[:_SHOWN], state=State.WARNING)


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
        "recent-failures",
        "no Flox pod failed to start in the last day",
        "each text names its own remedy; `flox-node collect` packs the log",
        _failures,
        decide_failures,
    ),
)
