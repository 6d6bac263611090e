"""`flox-node policy apply|show`: the administrator's policy of one node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flox_node.cli.node import DEFAULT_ROOT, AsJson, HostRoot, read_text

app = typer.Typer(help="Read and write the node's policy: hub, binary caches, time limits.", no_args_is_help=True)


@app.command(epilog="Example: flox-node policy apply policy.toml")
def apply(
    file: Annotated[Path, typer.Argument(help="The policy as TOML; what it does not say has its default.")],
    host_root: HostRoot = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Check a policy and put it into force. Pods that are created from then on follow it."""
    from flox_node.host import HostFiles
    from flox_node.state import policy

    files = HostFiles(host_root)
    before = files.read_optional(policy.PATH)
    data = policy.applied(read_text(file), before)
    changed = data != before
    if changed:
        files.mkdir(policy.PATH.rpartition("/")[0])
        files.write_atomic(policy.PATH, data, 0o644)
    if as_json:
        typer.echo(json.dumps({"changed": changed}))
    else:
        typer.echo(f"{policy.PATH} is in force." if changed else "Nothing to do.")


@app.command(epilog="Example: flox-node policy show")
def show(host_root: HostRoot = DEFAULT_ROOT) -> None:
    """Print the policy in force, defaults included, as JSON."""
    from flox_node.host import HostFiles
    from flox_node.state import policy

    typer.echo(json.dumps(policy.parse(HostFiles(host_root).read_optional(policy.PATH)).as_dict(), indent=1))
