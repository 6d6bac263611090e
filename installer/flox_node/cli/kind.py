"""`flox-node kind up|status|down|config`: a cluster on a laptop, from nothing to a running Flox pod."""

from __future__ import annotations

import os
import platform
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flox_node import __version__
from flox_node.cli.output import Result, application, command, say

if TYPE_CHECKING:
    from flox_node.kind.laptop import Laptop

app = application(
    "Make a cluster on this machine in which Flox pods run; it needs a container engine, kind and kubectl."
)


class With(StrEnum):
    """Who makes the cluster."""

    KIND = "kind"
    MINIKUBE = "minikube"
    K3D = "k3d"


Name = Annotated[str, typer.Option("--name", help="The cluster's name.")]
MadeWith = Annotated[With, typer.Option("--with", help="Who makes the cluster.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, max=20, help="How many nodes, the control plane among them.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Where the demo answers on this machine.")]
Kubernetes = Annotated[
    str, typer.Option("--kubernetes", metavar="VERSION", help="Such as 1.36.1.", show_default="kind's own")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print every command that would be run, and run none.")]
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "amd64": "amd64"}
_DEFAULT = "flox"


@command(app, example="flox-node kind up --nodes 3")
def up(
    name: Name = _DEFAULT,
    with_: MadeWith = With.KIND,
    nodes: Nodes = 1,
    port: Port = 8080,
    kubernetes: Kubernetes = "",
    image: Annotated[str, typer.Option("--image", help="The product's image.")] = f"flox-node:{__version__}",
    archive: Annotated[
        Path | None, typer.Option("--archive", help="The image as a file: nothing is asked of an engine or a network.")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Run the application and its redis of docs/examples/web.yaml.")] = True,
    dry_run: DryRun = False,
) -> Result:
    """Make the cluster, bring flox-node onto its nodes, and run a demo. Given again it repairs what is not right."""
    from flox_node.kind import laptop as steps

    laptop = _laptop(name, with_, nodes, port, kubernetes, dry_run=dry_run)
    steps.up(laptop, steps.Image(image, archive), demo=demo)
    body = {"context": laptop.context, "commands": laptop.printed, "dry_run": dry_run}
    if dry_run:
        return Result(body, "Nothing was done.")
    lines = [f"The cluster {name} is ready: kubectl --context {laptop.context} get nodes"]
    if demo:
        if with_ is With.KIND:
            port = steps.demo_port(laptop)
        else:  # which publishes no port of a node
            lines.append(f"kubectl --context {laptop.context} port-forward service/web {port}:8080 &")
        body["url"] = f"http://localhost:{port}/"
        lines.append(f"curl {body['url']}")
    return Result(body, "\n".join(lines))


@command(app, example="flox-node kind status")
def status(name: Name = _DEFAULT, with_: MadeWith = With.KIND) -> Result:
    """Show the cluster, its nodes and whether the demo runs. Exits with 7 while something of it lacks."""
    from dataclasses import asdict

    from flox_node.errors import DriftError
    from flox_node.kind import laptop as steps

    found = steps.status(_laptop(name, with_))
    if not found.cluster:
        return Result(asdict(found), f"There is no cluster {name}.")
    lines = [f"cluster {name}, context {found.context}{'' if found.ours else ', not made by this command'}"]
    lines += [f"  {node}: {'Flox pods run' if ready else 'no Flox node yet'}" for node, ready in found.nodes.items()]
    lines.append(f"  demo: {'runs' if found.demo else 'does not run'}")
    error = (
        None
        if found.ours and all(found.nodes.values())
        else DriftError(
            f"The cluster {name} is not as `flox-node kind up` leaves it.", remedy="`flox-node kind up` repairs it."
        )
    )
    return Result(asdict(found), "\n".join(lines), error)


@command(app, example="flox-node kind down")
def down(name: Name = _DEFAULT, with_: MadeWith = With.KIND, dry_run: DryRun = False) -> Result:
    """Remove the cluster with all it holds. One that this command did not make is left alone."""
    from flox_node.kind import laptop as steps

    laptop = _laptop(name, with_, dry_run=dry_run)
    there = steps.down(laptop)
    text = f"There is no cluster {name}." if not there else f"{'Would remove' if dry_run else 'Removed'} {name}."
    return Result({"removed": there and not dry_run, "commands": laptop.printed}, text)


@command(app, example="flox-node kind config --nix /srv/flox/nix --prefix /srv/flox/flox-node > cluster.yaml")
def config(
    name: Name = _DEFAULT,
    nodes: Nodes = 1,
    port: Port = 8080,
    nix: Annotated[
        str | None, typer.Option("--nix", help="A folder of this machine with a payload's store: mounted as /nix.")
    ] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="Its /opt/flox-node, mounted there.")] = None,
    kind_version: Annotated[
        str, typer.Option("--kind-version", help="The kind that the file is for; patches differ before 0.32.")
    ] = "0.33",
) -> Result:
    """Print a cluster file for `kind create cluster --config`; with --nix kind itself registers the handler."""
    from flox_node.errors import UsageError
    from flox_node.kind.cluster_file import Baked, Shape, cluster_file

    if (nix is None) != (prefix is None):
        raise UsageError("--nix and --prefix go together.", remedy="Give both, or neither.")
    if nix is not None and nodes > 1:
        raise UsageError("Several nodes cannot write one store.", remedy="--nix goes with --nodes 1.")
    parts = kind_version.removeprefix("v").split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        raise UsageError(f"--kind-version {kind_version} is no version.", remedy="Give it as in `kind version`: 0.33.")
    baked = Baked(nix, prefix, (int(parts[0]), int(parts[1]))) if nix and prefix else None
    text = cluster_file(Shape(name=name, nodes=nodes, port=port), baked)
    return Result({"config": text}, text.encode())


def _laptop(
    name: str,
    with_: With,
    nodes: int = 1,
    port: int = 8080,
    kubernetes: str = "",
    *,
    dry_run: bool = False,
) -> Laptop:
    """What this machine has, told before anything is done."""
    import re

    from flox_node.errors import UsageError
    from flox_node.host.terminal import UserTerminal
    from flox_node.kind import engine as engines
    from flox_node.kind.cluster_file import Shape
    from flox_node.kind.laptop import Laptop, require_tools
    from flox_node.kind.makers import maker

    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?", name):
        raise UsageError(f"{name!r} is no name of a cluster.", remedy="Use small letters, digits, dots and dashes.")
    if kubernetes and not re.fullmatch(r"v?1\.\d+\.\d+", kubernetes):
        raise UsageError(f"{kubernetes!r} is no Kubernetes version.", remedy="Give it whole, such as 1.36.1.")
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise UsageError(f"There is no image for {platform.machine()}.", remedy="Use a machine with amd64 or arm64.")
    terminal = UserTerminal()
    engine = engines.find(terminal, os.environ)
    made = maker(with_.value, engine)
    versions = require_tools(terminal, made)
    tools = ", ".join(f"{program} {version}" for program, version in versions.items())
    say(f"{engine.name} {engine.version}, {tools}")
    return Laptop(terminal, engine, made, Shape(name, nodes, port, kubernetes), architecture, say, dry_run=dry_run)
