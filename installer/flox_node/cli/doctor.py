"""`flox-node doctor|collect`: why Flox pods do not run on this node, and everything a helper needs to find out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flox_node.cli.node import DEFAULT_ROOT, DEFAULT_SOCKET, HostRoot, Socket
from flox_node.cli.output import Result, command, is_verbose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flox_node import findings
    from flox_node.support import Bundle


def mount(app: typer.Typer) -> None:
    """Add the commands to the top level."""
    command(app, example="flox-node doctor --deep")(doctor)
    command(app, example="flox-node collect -o support.tar.gz")(collect)


def doctor(
    host_root: HostRoot = DEFAULT_ROOT,
    socket: Socket = DEFAULT_SOCKET,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of the payload, too.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show what is well, too.")] = False,
) -> Result:
    """Look for what keeps Flox pods from running here; each finding with its remedy. Exits with 7 on a problem.

    Writes nothing but probe files, which it removes. A node without flox-node can be examined, too.
    """
    from flox_node.host import Host
    from flox_node.plan.doctor import examine
    from flox_node.settings import Settings

    return told(examine(Host.at(host_root), Settings(socket), deep=deep), everything=everything)


def collect(
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write, a .tar.gz.", show_default=False)],
    host_root: HostRoot = DEFAULT_ROOT,
    socket: Socket = DEFAULT_SOCKET,
) -> Result:
    """Pack what a helper needs (receipt, configuration, doctor, logs) into one archive, with no secret in it.

    Tokens, registry credentials and the values of environment variables are left out; read it before you pass it on.
    """
    from flox_node.host import Host
    from flox_node.plan.bundle import collect as pack
    from flox_node.settings import Settings

    return written(pack(Host.at(host_root), Settings(socket)), output)


def told(results: Sequence[findings.Finding], *, everything: bool) -> Result:
    """The answer of a doctor; its exit code is 7 when there is a problem among what it found."""
    from flox_node.errors import DriftError
    from flox_node.findings import State

    problems = sum(result.state is State.PROBLEM for result in results)
    error = None
    if problems:
        text = f"There {'is a problem' if problems == 1 else f'are {problems} problems'}."
        error = DriftError(text, remedy="Each finding says what to do.")
    body = {"checks": [dataclasses.asdict(result) for result in results]}
    return Result(body, lambda: _table(results, everything=everything or is_verbose()), error)


def written(bundle: Bundle, output: Path) -> Result:
    """The answer of `collect`: a bundle, written into a new file that nobody else may read.

    Raises:
        UsageError: the file is there already, or cannot be written.
    """
    from flox_node.errors import UsageError

    try:
        output.touch(0o600, exist_ok=False)
        output.write_bytes(bundle.archive)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.") from error
    body = {"file": str(output), "members": list(bundle.members)}
    return Result(body, f"{output}: {len(bundle.members)} files, {len(bundle.archive) >> 10} KiB.")


def _table(results: Sequence[findings.Finding], *, everything: bool) -> Iterator[Any]:
    from rich.markup import escape
    from rich.table import Table

    from flox_node.findings import State

    colours = {State.OK: "green", State.WARNING: "yellow", State.PROBLEM: "red", State.SKIPPED: "dim"}
    shown = [result for result in results if everything or result.state in (State.WARNING, State.PROBLEM)]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for result in shown:
        colour = colours[result.state]
        text = escape(result.title + (f": {result.cause}" if result.cause else ""))
        table.add_row(f"[{colour}]{result.state}[/]", result.id, text)
        if result.remedy:
            table.add_row("", "", f"-> {escape(result.remedy)}")
    if shown:
        yield table
    counts = {state: sum(result.state is state for result in results) for state in State}
    yield ", ".join(f"{count} {state}" for state, count in counts.items() if count) + "."
