"""What a doctor finds, on a node or in a cluster: verdicts, and results as they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check ended. `warning`: worth knowing, nothing fails by it; `skipped`: it cannot be told here."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """What was decided. `cause` says what was found; it may be empty where all is well."""

    state: State
    cause: str = ""


@dataclass(frozen=True)
class Finding:
    """A check's outcome, as it is shown. `remedy` is empty where all is well."""

    id: str
    title: str
    state: State
    cause: str
    remedy: str

    @classmethod
    def of(cls, id: str, title: str, remedy: str, verdict: Verdict) -> Finding:
        """The result of a check that came to `verdict`; its remedy is only told where something is wrong."""
        bad = verdict.state in (State.WARNING, State.PROBLEM)
        return cls(id, title, verdict.state, verdict.cause, remedy if bad else "")


def ok(cause: str = "") -> Verdict:
    """All is well."""
    return Verdict(State.OK, cause)


def warning(cause: str) -> Verdict:
    """Worth knowing."""
    return Verdict(State.WARNING, cause)


def problem(cause: str) -> Verdict:
    """Something fails, or will."""
    return Verdict(State.PROBLEM, cause)


def skipped(cause: str) -> Verdict:
    """It cannot be told."""
    return Verdict(State.SKIPPED, cause)


def told(causes: list[str], *, otherwise: str = "", state: State = State.PROBLEM) -> Verdict:
    """`state` with all the causes, or ok where there are none."""
    return Verdict(state, "; ".join(causes)) if causes else ok(otherwise)
