"""The command `flox-node`: thin commands. Slow imports happen inside the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from flox_node import __version__
from flox_node.cli import (
    cluster,
    containerd,
    doctor,
    eks,
    env,
    kind,
    maintenance,
    manifests,
    node,
    output,
    payload,
    policy,
)

app = output.application(
    "Turn Kubernetes nodes into nodes that run pods from Flox environments instead of container images.",
    name="flox-node",
    epilog="Start with `flox-node plan --payload PAYLOAD`: it shows what an install would do, and writes nothing.",
)
for room in (node, doctor, maintenance, manifests):
    room.mount(app)
for name, group in (
    ("cluster", cluster.app),
    ("payload", payload.app),
    ("containerd", containerd.app),
    ("policy", policy.app),
    ("env", env.app),
    ("kind", kind.app),
    ("eks", eks.app),
):
    app.add_typer(group, name=name)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    verbose: output.Verbose = False,
    quiet: output.Quiet = False,
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    del version
    output.speak(verbose=verbose, quiet=quiet)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every failure has an exit code, and cause and remedy on stderr (or as JSON)."""
    sys.exit(output.run(app, sys.argv[1:] if arguments is None else arguments))
