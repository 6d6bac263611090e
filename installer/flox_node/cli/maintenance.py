"""`flox-node boot|gc`: what the node's own units call."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from flox_node.cli.node import DEFAULT_ROOT, AsJson, HostRoot

if TYPE_CHECKING:
    from flox_node.plan.maintenance import Swept


def mount(app: typer.Typer) -> None:
    """Add the commands to the top level."""
    app.command(epilog="Called by flox-node-boot.service.")(boot)
    app.command(epilog="Called by flox-node-gc.service. Example: flox-node gc --days 7")(gc)


def boot(host_root: HostRoot = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Find the node's OCI runtime again, have the image in containerd, forget pods that are gone."""
    from flox_node.host import Host
    from flox_node.plan import maintenance

    _tell(maintenance.boot(Host.at(host_root), lambda _: None), as_json)


def gc(
    host_root: HostRoot = DEFAULT_ROOT,
    days: Annotated[float, typer.Option("--days", min=0, help="Let go of what was not used for so long.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Let go of environments and payloads that have not been used for long; nothing that runs loses a path."""
    from flox_node.host import Host
    from flox_node.plan import maintenance

    _tell(maintenance.gc(Host.at(host_root), lambda _: None, days=days), as_json)


def _tell(swept: Swept, as_json: bool) -> None:
    told = dataclasses.asdict(swept)
    if as_json:
        typer.echo(json.dumps(told))
        return
    for name, what in told.items():
        if what:
            typer.echo(f"{name}: {what if isinstance(what, str) else ', '.join(what)}")
