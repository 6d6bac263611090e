"""`flox-node boot|gc`: what the node's own units call."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Annotated

import typer

from flox_node.cli.node import DEFAULT_ROOT, HostRoot, report
from flox_node.cli.output import Result, command

if TYPE_CHECKING:
    from flox_node.plan.maintenance import Swept


def mount(app: typer.Typer) -> None:
    """Add the commands to the top level."""
    command(app, example="flox-node boot (flox-node-boot.service does)", hidden=True)(boot)
    command(app, example="flox-node gc --days 7 (flox-node-gc.service does, every day)")(gc)


def boot(host_root: HostRoot = DEFAULT_ROOT) -> Result:
    """Find the node's OCI runtime again, have the image in containerd, forget pods that are gone."""
    from flox_node.host import Host
    from flox_node.plan import maintenance

    return _told(maintenance.boot(Host.at(host_root), _detail))


def gc(
    host_root: HostRoot = DEFAULT_ROOT,
    days: Annotated[float, typer.Option("--days", min=0, help="Let go of what was not used for so long.")] = 30,
) -> Result:
    """Let go of environments and payloads that have not been used for long; nothing that runs loses a path."""
    from flox_node.host import Host
    from flox_node.plan import maintenance

    return _told(maintenance.gc(Host.at(host_root), _detail, days=days))


_detail = functools.partial(report, detail=True)


def _told(swept: Swept) -> Result:
    body = dataclasses.asdict(swept)
    lines = [f"{name}: {what if isinstance(what, str) else ', '.join(what)}" for name, what in body.items() if what]
    return Result(body, "\n".join(lines))
