"""`flox-node policy apply|check|show|explain`: the administrator's policy of one node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flox_node.cli.node import DEFAULT_ROOT, AsJson, HostRoot, read_text

app = typer.Typer(
    help="Read and write the node's policy: hub, binary caches, limits, what pods may.", no_args_is_help=True
)
PolicyFile = Annotated[Path, typer.Argument(help="The policy as TOML; what it does not say has its default.")]


@app.command(epilog="Example: flox-node policy apply policy.toml")
def apply(file: PolicyFile, host_root: HostRoot = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Check a policy and put it into force. Pods that are created from then on follow it."""
    from flox_node.host import HostFiles
    from flox_node.state import policy, policy_text

    files = HostFiles(host_root)
    before = files.read_optional(policy.PATH)
    data = policy_text.applied(read_text(file), before)
    changed = data != before
    if changed:
        files.mkdir(policy.PATH.rpartition("/")[0])
        files.write_atomic(policy.PATH, data, 0o644)
    if as_json:
        typer.echo(json.dumps({"changed": changed}))
    else:
        typer.echo(f"{policy.PATH} is in force." if changed else "Nothing to do.")


@app.command(epilog="Example: flox-node policy check policy.toml")
def check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Check a policy without putting it into force."""
    from flox_node.state import policy_text

    policy_text.applied(read_text(file), None)
    typer.echo(json.dumps({"valid": True}) if as_json else f"{file} is a policy.")


@app.command(epilog="Example: flox-node policy show > policy.toml")
def show(host_root: HostRoot = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Print the policy in force, defaults included, as TOML that `apply` takes back."""
    from flox_node.host import HostFiles
    from flox_node.state import policy, policy_text

    given = policy.parse(HostFiles(host_root).read_optional(policy.PATH))
    typer.echo(json.dumps(given.as_dict(), indent=1) if as_json else policy_text.rendered(given), nl=as_json)


@app.command(epilog="Example: flox-node policy explain realise.wait_s")
def explain(
    key: Annotated[str, typer.Argument(help="A key, for example realise.wait_s or namespaces.*.owners.")],
    host_root: HostRoot = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Say what one key means, its default, and what is in force."""
    from dataclasses import asdict

    from flox_node.host import HostFiles
    from flox_node.state import policy, policy_text

    found = policy_text.explained(key, policy.parse(HostFiles(host_root).read_optional(policy.PATH)))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{found.key}: {found.text}")
    typer.echo(f"default: {json.dumps(found.default)}")
    typer.echo(f"in force: {json.dumps(found.value)}")
