"""The shape of a check: a probe that looks at the node, and a pure decision about what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from flox_node.errors import FloxNodeError
from flox_node.findings import Finding, State, Verdict, ok, problem, skipped, told, warning
from flox_node.plan.doctor.node import Node

__all__ = ["Check", "Finding", "State", "Verdict", "ok", "problem", "skipped", "told", "warning"]

F = TypeVar("F")


@dataclass(frozen=True)
class Check(Generic[F]):
    """One thing to look at. `title` says what, `remedy` what to do when it is not well."""

    id: str
    title: str
    remedy: str
    probe: Callable[[Node], F]
    decide: Callable[[F], Verdict]

    def run(self, node: Node) -> Finding:
        """Look and decide; a node that cannot be looked at gives `skipped` with the reason."""
        try:
            verdict = self.decide(self.probe(node))
        except FloxNodeError as error:
            verdict = skipped(error.cause)
        except OSError as error:
            verdict = skipped(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        return Finding.of(self.id, self.title, self.remedy, verdict)
