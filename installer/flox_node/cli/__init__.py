"""The command `flox-node`: thin commands. Slow imports happen inside the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from flox_node import __version__
from flox_node.cli import doctor, maintenance, manifests, node, output
from flox_node.cli.cluster import app as cluster
from flox_node.cli.containerd import app as containerd
from flox_node.cli.eks import app as eks
from flox_node.cli.kind import app as kind
from flox_node.cli.payload import app as payload
from flox_node.cli.policy import app as policy

app = output.application(
    "Turn Kubernetes nodes into nodes that run pods from Flox environments instead of container images.",
    name="flox-node",
    epilog="Start with `flox-node plan --payload PAYLOAD`: it shows what an install would do, and writes nothing.",
)
for room in (node, doctor, maintenance, manifests):
    room.mount(app)
app.add_typer(cluster, name="cluster")
app.add_typer(payload, name="payload")
app.add_typer(containerd, name="containerd")
app.add_typer(policy, name="policy")
app.add_typer(kind, name="kind")
app.add_typer(eks, name="eks")


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
