"""What a measurement returns, and how its value is made of its samples."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Sequence
from typing import TypedDict


class Row(TypedDict):
    """One figure of `bench.json`. `goal` is the most that `value` may be; None: it is only reported."""

    name: str
    value: float
    unit: str
    goal: float | None
    ok: bool
    samples: list[float]


Measurement = Callable[[], Sequence[Row]]


def row(name: str, samples: Sequence[float], *, unit: str, goal: float | None) -> Row:
    """The median of some samples against a goal."""
    value = round(statistics.median(samples), 4)
    ok = goal is None or value <= goal
    return Row(name=name, value=value, unit=unit, goal=goal, ok=ok, samples=[round(sample, 4) for sample in samples])


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float], *, goal: float | None) -> Row:
    """The median of pairwise ratios: each of ours ran right beside its counterpart, so a slow minute hits both."""
    return row(name, [mine / other for mine, other in zip(ours, theirs, strict=True)], unit="ratio", goal=goal)


def cpu_seconds(run: Callable[[], object]) -> float:
    """What the processes that `run` starts and waits for take of a CPU, user and system."""
    before = _cpu_of_children()
    run()
    return _cpu_of_children() - before


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
