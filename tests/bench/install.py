"""An install that has nothing to do, on a real node."""

from __future__ import annotations

import resource
from collections.abc import Sequence

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bench.rows import Measurement, Row, row

ROUNDS = 9


def noop() -> Sequence[Row]:
    """CPU seconds (user and system, the entering of the node included) of a second install."""
    seconds = []
    with NodeBox("2.1") as box:
        flox.install(box)
        for _ in range(ROUNDS):
            before = _cpu_of_children()
            flox.install(box)
            seconds.append(_cpu_of_children() - before)
    return (row("install.noop_cpu_s", seconds, unit="s", goal=0.5),)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {noop: ("install.noop_cpu_s",)}
