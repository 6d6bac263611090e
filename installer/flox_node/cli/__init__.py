"""The command `flox-node`: thin commands. Slow imports happen inside the command that needs them."""

from __future__ import annotations

import json
import sys
import traceback
from typing import NoReturn

import typer

from flox_node import __version__
from flox_node.cli import doctor, maintenance, manifests, node
from flox_node.cli.cluster import app as cluster
from flox_node.cli.containerd import app as containerd
from flox_node.cli.payload import app as payload
from flox_node.cli.policy import app as policy
from flox_node.errors import FloxNodeError, OutsideError

app = typer.Typer(
    name="flox-node",
    help="Turn Kubernetes nodes into nodes that run pods from Flox environments instead of container images.",
    epilog="Start with `flox-node plan --payload PAYLOAD`: it shows what an install would do, and writes nothing.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help costs 70 ms of import at every call
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
node.mount(app)
doctor.mount(app)
maintenance.mount(app)
manifests.mount(app)
app.add_typer(cluster, name="cluster")
app.add_typer(payload, name="payload")
app.add_typer(containerd, name="containerd")
app.add_typer(policy, name="policy")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; every failure has an exit code, and cause and remedy on stderr (or as JSON)."""
    try:
        app()
    except FloxNodeError as error:
        _fail(error)
    except OSError as error:
        # A full or read-only disk, a missing permission: no bug, and the path says most of it.
        where = f"{error.filename}: " if error.filename else ""
        remedy = "Repair what the text names, then run the command again: it goes on where it stopped."
        _fail(OutsideError(f"{where}{error.strerror or error}.", remedy=remedy))
    except Exception as error:
        traceback.print_exc()
        _fail(FloxNodeError(f"{type(error).__name__}: {error}"))
    sys.exit(0)


def _fail(error: FloxNodeError) -> NoReturn:
    if "--json" in sys.argv:
        typer.echo(json.dumps(error.as_dict()))
    else:
        typer.echo(f"flox-node: {error.cause}\n  -> {error.remedy}", err=True)
    sys.exit(error.exit_code)
