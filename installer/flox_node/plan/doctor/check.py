"""The shape of a check: a probe that looks at the node, and a pure decision about what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from flox_node.errors import FloxNodeError
from flox_node.plan.doctor.node import Node

F = TypeVar("F")


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
class Result:
    """A check's outcome, as it is shown. `remedy` is empty where all is well."""

    id: str
    title: str
    state: State
    cause: str
    remedy: str


@dataclass(frozen=True)
class Check(Generic[F]):
    """One thing to look at. `title` says what, `remedy` what to do when it is not well."""

    id: str
    title: str
    remedy: str
    probe: Callable[[Node], F]
    decide: Callable[[F], Verdict]

    def run(self, node: Node) -> Result:
        """Look and decide; a node that cannot be looked at gives `skipped` with the reason."""
        try:
            verdict = self.decide(self.probe(node))
        except FloxNodeError as error:
            verdict = skipped(error.cause)
        except OSError as error:
            verdict = skipped(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        bad = verdict.state in (State.WARNING, State.PROBLEM)
        return Result(self.id, self.title, verdict.state, verdict.cause, self.remedy if bad else "")


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
