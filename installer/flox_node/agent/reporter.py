"""The container `reporter`: has the API server told what `node` says. It stays resident, and only waits."""

from __future__ import annotations

import select
import signal
import sys
import time

from flox_node.agent import exchange
from flox_node.agent.children import run
from flox_node.agent.exchange import NodeState, PodNews, Reported, Told
from flox_node.agent.serve import Health
from flox_node.host.watch import FolderWatch

_REPORT_S = 3600.0  # a report may wait for a slot; another one then goes on waiting
_REVIEW_S = 600.0  # somebody may have changed the Node
_AGAIN_S = (10.0, 30.0, 60.0, 120.0, 300.0)  # a kubelet may register its node anew, an autoscaler set its taint again
_LONGEST_S = 300.0
_ALONE_S = 120.0
_TICK_S = 60.0


def serve() -> int:
    """Run the loop until SIGTERM. A report that is under way is ended, and gives its slot back."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    health = Health(9581, ready=is_ready)
    failures, identity = 0, ""
    due: list[float] = []
    with FolderWatch() as watch:
        watch.follow([str(exchange.NODE)])
        while True:
            health.alive_for(_REPORT_S + 60)
            watch.drain()
            failures = failures + 1 if run(["flox_node.agent", "report"], _REPORT_S).code else 0
            now = time.monotonic()
            due = [*(moment for moment in due if moment > now), now + _REVIEW_S]
            state = exchange.read(exchange.NODE, "state.json", NodeState)
            if state is not None and state.identity != identity:
                identity = state.identity
                due += [now + seconds for seconds in _AGAIN_S]
            not_before = now + min(_LONGEST_S, 2.0**failures) if failures else now
            while (now := time.monotonic()) < min(due) and (now < not_before or is_told()):
                health.alive_for(_TICK_S + 60)
                wait = min(_TICK_S, min(due) - now, not_before - now if now < not_before else _TICK_S)
                select.select([watch.fileno()], [], [], max(0.0, wait))
                watch.drain()


def serve_alone() -> int:
    """Run the loop where no `node` container is, on nodes that their image or their bootstrap made Flox nodes.

    All that is known of such a node is what its kubelet reports to the API server, and that is enough: label and
    startup taints follow whether the handler is among it. No container needs a privilege for that.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    live = False
    health = Health(9581, ready=lambda: live)
    waits: list[float] = []
    while True:
        health.alive_for(_ALONE_S + 60)
        live = run(["flox_node.agent", "report", "--alone"], _ALONE_S).code == 0
        waits = (waits or [*_AGAIN_S, _REVIEW_S]) if live else []
        pause = waits.pop(0) if live else _AGAIN_S[0]
        waits = waits or [_REVIEW_S]
        health.alive_for(pause + 60)
        time.sleep(pause)


def is_told() -> bool:
    """Whether the API server knows what `node` says; there is nothing to tell before it says anything."""
    news = exchange.read(exchange.NODE, "pods.json", PodNews) or PodNews()
    told = exchange.read(exchange.REPORTER, "told.json", Told) or Told()
    return _state_is_told() and all(notice.id in told.ids for notice in news.notices)


def _state_is_told() -> bool:
    state = exchange.read(exchange.NODE, "state.json", NodeState)
    reported = exchange.read(exchange.REPORTER, "reported.json", Reported)
    return state is None or (reported is not None and reported.state == state.digest and not state.slot)


def is_ready() -> bool:
    """Whether the node is settled and the API server knows."""
    state = exchange.read(exchange.NODE, "state.json", NodeState)
    return state is not None and state.phase.settled and _state_is_told()
