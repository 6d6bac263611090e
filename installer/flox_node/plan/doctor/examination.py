"""All checks, in the order in which they are shown."""

from __future__ import annotations

from typing import Any

from flox_node.host import Host
from flox_node.plan.doctor import daemon, installation, machine, nri, pods
from flox_node.plan.doctor.check import Check, Finding
from flox_node.plan.doctor.node import Node
from flox_node.settings import Settings

CHECKS: tuple[Check[Any], ...] = (
    *daemon.CHECKS,
    *nri.CHECKS,
    *installation.CHECKS,
    *machine.CHECKS,
    *pods.CHECKS,
)


def examine(host: Host, settings: Settings, *, deep: bool = False) -> tuple[Finding, ...]:
    """Run every check. Writes nothing but probe files that it removes; `deep` reads every byte of the payload, too."""
    node = Node(host, settings, deep=deep)
    return tuple(check.run(node) for check in CHECKS)
