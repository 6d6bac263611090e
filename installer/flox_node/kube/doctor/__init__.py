"""`flox-node cluster doctor`: what of a cluster keeps Flox pods from running, each with its cause and what to do."""

from __future__ import annotations

from datetime import UTC, datetime

from flox_node.findings import Finding
from flox_node.kube.api import Api
from flox_node.kube.doctor import installation, nodes, workloads
from flox_node.kube.doctor.facts import Check, gather

__all__ = ["CHECKS", "examine"]

CHECKS: tuple[Check, ...] = (*installation.CHECKS, *nodes.CHECKS, *workloads.CHECKS)
"""All checks, in the order in which they are shown."""


def examine(api: Api) -> tuple[Finding, ...]:
    """Read once what all checks look at, and run them. Writes nothing."""
    facts = gather(api, datetime.now(UTC))
    return tuple(Finding.of(check.id, check.title, check.remedy, check.decide(facts)) for check in CHECKS)
