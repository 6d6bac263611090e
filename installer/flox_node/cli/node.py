"""`flox-node plan|install|status|uninstall`: one node, from where its root file system is visible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flox_node.cli.fetching import SOURCES, BasicFile, BearerFile, Ca, PayloadSource, Sha256, opened
from flox_node.cli.output import Result, command, read_text, say, write_text
from flox_node.cli.settings import option, with_settings
from flox_node.settings import Settings

if TYPE_CHECKING:
    from flox_node.host import Host
    from flox_node.plan import StepResult
    from flox_node.plan.status import NodeStatus

HostRoot = Annotated[
    Path,
    typer.Option(
        "--host-root",
        envvar="FLOX_NODE_HOST_ROOT",
        help="Where the node's root file system is visible ('/host' in a pod).",
    ),
]
Socket = Annotated[str | None, option("socket")]
DEFAULT_ROOT = Path("/")
DEFAULT_SOCKET: str | None = None


def mount(app: typer.Typer) -> None:
    """Add the node's commands to the top level."""
    command(app, example="flox-node plan --payload flox-node.tar.zst")(with_settings(plan))
    command(app, example="flox-node install --payload flox-node.tar.zst")(with_settings(install))
    command(app, example="flox-node status --json")(status)
    command(app, example="flox-node uninstall --purge")(uninstall)


def plan(
    payload: PayloadSource,
    settings: Settings,
    host_root: HostRoot = DEFAULT_ROOT,
    sha256: Sha256 = "",
    bearer_file: BearerFile = None,
    basic_file: BasicFile = None,
    ca: Ca = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Save the plan for `flox-node install FILE`.")
    ] = None,
) -> Result:
    """Show what an install would do, with a diff of containerd's configuration. Writes nothing on the node."""
    from flox_node import plan as runs
    from flox_node.host import Host

    host = Host.at(host_root)
    with opened(payload, sha256, bearer_file, basic_file, ca) as given:
        found = runs.preview(host, given, settings)
        if out is not None:
            agreed = runs.agreement(host, given, settings, found, _absolute(payload))
            write_text(out, json.dumps(agreed.to_json(), indent=1) + "\n")
    recognised, steps = found.plan.detection, list(found.steps)
    why = ", ".join(map(str, recognised.signs)) or ("named" if settings.platform else "nothing says otherwise")
    lines = [f"This node: {recognised.platform.title} ({why}).", *map(_planned, steps)]
    if all(step.outcome is runs.Outcome.ALREADY for step in steps):
        lines.append("Nothing to do.")
    return Result({"platform": recognised.platform.name, "steps": _steps(steps)}, "\n".join(lines))


def install(
    settings: Settings,
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="A plan that `flox-node plan -o` saved: do this or nothing.")
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", envvar="FLOX_NODE_PAYLOAD", help=SOURCES, show_default="where the plan found it"),
    ] = None,
    host_root: HostRoot = DEFAULT_ROOT,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Compare every byte and SELinux type of ours; put right what differs."),
    ] = False,
    sha256: Sha256 = "",
    bearer_file: BearerFile = None,
    basic_file: BasicFile = None,
    ca: Ca = None,
    image_build: Annotated[
        bool,
        typer.Option("--image-build", help="Install into the image that this machine is to become: start nothing."),
    ] = False,
) -> Result:
    """Make the node a Flox node: place the payload, register the handler, restart containerd, ask it.

    A node that is one already is not written to, and containerd is not restarted. A run that was killed is finished by
    the next.
    """
    from flox_node import plan as runs
    from flox_node.errors import UsageError
    from flox_node.host import Host
    from flox_node.plan import image, saved

    host, agreed = Host.at(host_root), None
    chosen = dataclasses.replace(settings, repair=repair)
    if plan_file is not None:
        agreed = saved.parse(read_text(plan_file).encode())
        if image_build or dataclasses.replace(chosen, digest="") not in (Settings(), agreed.settings):
            raise UsageError("A plan holds its settings.", remedy="Make a new plan with the settings that you want.")
        chosen = agreed.settings
    source = payload or (agreed.payload if agreed else "")
    if not source:
        raise UsageError("There is no payload to install.", remedy="Name it with --payload.")
    with opened(source, sha256, bearer_file, basic_file, ca) as given:
        if image_build:
            steps = image.bake(host, given, chosen, report)
        else:
            steps = runs.install(host, given, chosen, report, agreed)
    changed = any(step.outcome is runs.Outcome.DONE for step in steps)
    done = "Nodes of this image have the handler flox." if image_build else "The handler flox is live."
    text = done if changed else f"Nothing to do. {done}"
    return Result({"changed": changed, "steps": _steps(steps)}, text)


def status(
    host_root: HostRoot = DEFAULT_ROOT,
    socket: Socket = DEFAULT_SOCKET,
    built_image: Annotated[
        bool, typer.Option("--image", help="Judge an image made with --image-build, at the end of its build.")
    ] = False,
) -> Result:
    """Tell what is installed, whether the handler is live, and what differs from the receipt (then exit 7)."""
    from flox_node.errors import DriftError
    from flox_node.host import Host
    from flox_node.plan.status import status as node_status

    if built_image:
        return _judged(Host.at(host_root), Settings(socket))
    found = node_status(Host.at(host_root), Settings(socket))
    error = None
    if found.drift:
        error = DriftError("The node is not what its receipt says.")
    elif found.installed and not found.handler_live:
        error = DriftError("The handler flox is not live.", remedy="`flox-node doctor` looks for the reason.")
    return Result(dataclasses.asdict(found), lambda: _status(found), error)


def uninstall(
    host_root: HostRoot = DEFAULT_ROOT,
    socket: Socket = DEFAULT_SOCKET,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the store and the policy too, if an install made them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on although Flox pods run on the node.")] = False,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be taken back, and change nothing.")
    ] = False,
) -> Result:
    """Take back what installs did: containerd's configuration to the byte, then the rest. Others' later edits stay."""
    from flox_node import plan as runs
    from flox_node.host import Host

    if only_plan:
        steps = runs.preview_uninstall(Host.at(host_root), Settings(socket), purge=purge, force=force)
        text = "\n".join(map(_undone, steps)) or "Nothing to do: flox-node is not installed here."
        return Result({"steps": _steps(steps)}, text)
    steps = runs.uninstall(Host.at(host_root), Settings(socket), report, purge=purge, force=force)
    return Result({"changed": bool(steps), "steps": _steps(steps)}, _told_of_uninstall(steps))


def _judged(host: Host, settings: Settings) -> Result:
    from flox_node.errors import DriftError
    from flox_node.plan import image

    found = image.judge(host, settings)
    lines = [f"flox-node {found.version}, payload {found.payload_id}", *found.problems]
    remedy = "Put right what the lines above name, last of all in the build, then build the image."
    error = DriftError("The image is not as it should be.", remedy=remedy) if found.problems else None
    return Result(
        dataclasses.asdict(found), "\n".join(lines if found.problems else [*lines, "The image is whole."]), error
    )


def _told_of_uninstall(steps: list[StepResult]) -> str:
    from flox_node.plan import Outcome

    if not steps:
        return "Nothing to do: flox-node is not installed here."
    kept = dict.fromkeys(step.reason for step in steps if step.outcome is Outcome.KEPT)
    if kept:
        return f"Kept: {'; '.join(kept)}.\n-> Run this command again when they are gone."
    return "The node is as before."


def report(step: StepResult, *, detail: bool = False) -> None:
    """Tell of a step on the way; a `detail` only with `-v`."""
    seconds = f"  {step.seconds:.1f} s" if step.seconds >= 0.05 else ""
    reason = f"  ({step.reason})" if step.outcome == "kept" else ""
    say(f"{step.outcome:>8}  {step.description}{reason}{seconds}", detail=detail)
    for note in step.steps:
        say(f"          {note}", detail=detail)


def _planned(step: StepResult) -> str:
    mark = "=" if step.outcome == "already" else "+"
    diff = "".join(f"\n    {line}" for line in step.diff.splitlines())
    return f"{mark} {step.description}" + (f"  ({step.reason})" if step.reason else "") + diff


def _undone(step: StepResult) -> str:
    mark = "=" if step.outcome == "kept" else "-"
    diff = "".join(f"\n    {line}" for line in step.diff.splitlines())
    return f"{mark} undo: {step.description}" + (f"  ({step.reason})" if step.reason else "") + diff


def _absolute(source: str) -> str:
    """A payload's source as it is found from any folder."""
    path = Path(source.removeprefix("@"))
    return source if "://" in source else "@" * source.startswith("@") + str(path.absolute())


def _steps(steps: list[StepResult]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(step) for step in steps]


def _status(found: NodeStatus) -> Iterator[Any]:
    from rich.markup import escape
    from rich.table import Table

    rows = [
        ("installed", f"flox-node {found.version}, payload {found.payload_id}" if found.installed else "no"),
        ("platform", found.platform or "?"),
        ("handler flox", "live" if found.handler_live else "not live"),
        ("containerd", f"{found.containerd_version or '?'}  {found.containerd_config}"),
    ]
    if found.interrupted:
        rows.append(
            ("interrupted", "a run was killed; `flox-node install` finishes it, `flox-node uninstall` undoes it")
        )
    if found.problem:
        rows.append(("problem", found.problem))
    for drift in found.drift:
        rows.append(("drift", drift.reason))
        if drift.suspect:
            rows.append(("", f"looks like: {drift.suspect}"))
    table = Table(show_header=False, box=None)
    for name, text in rows:
        table.add_row(name, escape(text))
    yield table
