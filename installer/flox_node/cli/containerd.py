"""`flox-node containerd patch|explain`: what a containerd configuration says, and one handler in it. Writes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flox_node.cli.node import DEFAULT_ROOT, HostRoot
from flox_node.cli.output import Result, application, command, say
from flox_node.names import HANDLER, SHIM

if TYPE_CHECKING:
    from flox_node.containerd.config.editor import Handler
    from flox_node.containerd.config.version import ContainerdVersion

app = application("Read and patch containerd's configuration.")

Version = Annotated[
    str, typer.Option("--containerd-version", help="The containerd that reads it, e.g. 1.7.24.", show_default=False)
]
Name = Annotated[str, typer.Option("--handler", help="The name of the runtime handler.")]
BinaryName = Annotated[str, typer.Option("--binary-name", help="The handler's OCI runtime, as the node names it.")]
_DEFAULT_CONFIG = "/etc/containerd/config.toml"


@command(app, example="flox-node containerd patch config.toml --containerd-version 2.1.4 > new.toml")
def patch(
    file: Annotated[Path, typer.Argument(help="The configuration file, '-' for the standard input.")],
    containerd_version: Version,
    handler: Name = HANDLER,
    binary_name: BinaryName = SHIM,
    runtime_path: Annotated[
        str | None, typer.Option("--runtime-path", help="The shim that containerd starts, if not its own.")
    ] = None,
    template: Annotated[
        bool, typer.Option("--template", help="The file is a template of a distribution that is filled in later.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Replace a handler of this name that is not ours; --remove brings it back.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the handler out instead.")] = False,
) -> Result:
    """Print the file with the handler's table in it; every other byte stays. The file itself is not written.

    Always edits in place, for containerd 2.x too. Exits with 3 where registering would be wrong, and says why.
    """
    from flox_node.containerd.config import editor
    from flox_node.errors import UsageError

    version = _version(containerd_version)
    wanted = _handler(handler, binary_name, runtime_path)
    try:
        source = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    if remove:
        done = editor.remove(source, wanted, version)
    else:
        done = editor.register(source, wanted, version, template=template, adopt=adopt)
        if str(file) != "-":
            _check_imports(file, version)
    body = {
        "changed": done.changed,
        "plugin_id": done.plugin_id,
        "inherited": done.inherited,
        "inherited_from": done.inherited_from or None,
        "added_runc": done.added_runc,
        "inner_runtime": done.inner_runtime,
        "result": done.result.decode("utf-8", "replace"),
    }
    return Result(body, done.result)


def _check_imports(file: Path, version: ContainerdVersion) -> None:
    """What the imports of the file, as they are on this machine, mean for the patch: said on stderr, or refused."""
    from flox_node.containerd.config.effective import load
    from flox_node.errors import RefusedError
    from flox_node.host import HostFiles

    effective = load(str(file.absolute()), HostFiles("/"), version)
    if effective.state == "refused" and version.major == 1:
        raise RefusedError(
            effective.refused or "", remedy="Repair the imports first; the file alone could be patched through '-'."
        )
    for finding in effective.findings:
        if finding.severity != "note":
            say(f"flox-node: {finding.severity}: {finding.text}")


@command(app, example="flox-node containerd explain --host-root /host --containerd-version 1.7.24")
def explain(
    file: Annotated[
        Path | None, typer.Argument(help=f"The root file; default: {_DEFAULT_CONFIG} below --host-root.")
    ] = None,
    containerd_version: Annotated[
        str | None,
        typer.Option("--containerd-version", help="The containerd that reads it; default: the node's running one."),
    ] = None,
    host_root: HostRoot = DEFAULT_ROOT,
    socket: Annotated[
        str, typer.Option("--socket", help="The CRI socket whose containerd is meant without --containerd-version.")
    ] = "/run/containerd/containerd.sock",
    handler: Name = HANDLER,
    binary_name: BinaryName = SHIM,
) -> Result:
    """Show which file sets what, who shadows whom, what this containerd makes of it, and where our table belongs."""
    from flox_node.containerd.config.effective import load
    from flox_node.containerd.config.explain import report
    from flox_node.host import HostFiles

    reader = HostFiles(host_root)
    version = _version(containerd_version or _running_version(host_root, socket))
    if file is not None:
        root = str(file.absolute()) if host_root == DEFAULT_ROOT else str(file)
    else:
        root = _running_config(host_root, socket) if containerd_version is None else _DEFAULT_CONFIG
    told = report(load(root, reader, version), reader, _handler(handler, binary_name, None))
    return Result(told, lambda: _tables(told))


def _running_version(host_root: Path, socket: str) -> str:
    from flox_node.containerd.live import daemon
    from flox_node.errors import OutsideError
    from flox_node.host import Host

    try:
        return daemon.cri(Host.at(host_root), socket).status().version
    except OutsideError as error:
        raise OutsideError(
            error.cause, remedy="Name the version with --containerd-version to read the files alone."
        ) from error


def _running_config(host_root: Path, socket: str) -> str:
    from flox_node.containerd.live import daemon
    from flox_node.errors import RefusedError
    from flox_node.host import Host

    try:
        return daemon.find(Host.at(host_root), socket, patience_s=0).config_path
    except RefusedError as error:
        raise RefusedError(error.cause, remedy="Name the root file of its configuration as FILE.") from error


def _version(text: str) -> ContainerdVersion:
    from flox_node.containerd.config.version import ContainerdVersion

    return ContainerdVersion.parse(text)


def _handler(name: str, binary_name: str, runtime_path: str | None) -> Handler:
    from flox_node.containerd.config.editor import Handler

    return Handler(name, binary_name or None, runtime_path)


def _setting(path: Sequence[str]) -> str:
    """The short name: without `plugins` and, for the CRI's own tables, their ids."""
    return ".".join(path[2:] if path[0] == "plugins" else path)


def _tables(told: dict[str, Any]) -> Iterator[Any]:
    yield f"containerd {told['containerd']}: {told['summary']}\n"
    files = [
        (
            file["path"] + ("" if file["exists"] else " (missing: built-in defaults)"),
            str(file["version"] or "none"),
            file["imported_by"] or "root",
        )
        for file in told["files"]
    ]
    yield from _table("Files, in load order", ("file", "version", "imported by"), files)
    handlers = [
        (
            entry["name"] + (" (default)" if entry["default"] else ""),
            str(entry["runtime_type"]),
            ", ".join(f"{key}={value}" for key, value in entry["options"].items()),
            ", ".join(entry["set_by"]) or "built in",
        )
        for entry in told["handlers"]
    ]
    yield from _table(f"Handlers, under {told['plugin']}", ("handler", "type", "options", "set by"), handlers)
    settings = [
        (_setting(entry["path"]), json.dumps(entry["value"], default=str), f"{entry['file']}:{entry['line'] or '?'}")
        for entry in told["settings"]
    ]
    yield from _table("Settings of the CRI and the daemon", ("setting", "value", "set at"), settings)
    findings = [
        (entry["severity"], entry["file"] + (f":{entry['line']}" if entry["line"] else ""), entry["text"])
        for entry in told["findings"]
    ]
    yield from _table("Findings", ("", "where", "what"), findings)
    placement = told["placement"]
    if placement["refused"]:
        yield f"Our handler cannot be registered: {placement['refused']}\n  -> {placement['remedy']}"
    for edit in placement["edits"]:
        how = "is there already" if edit["there_already"] else "belongs"
        runc = ", together with a table for runc" if edit["adds_runc"] else ""
        yield (
            f"Our table {how} in {edit['path']} ({edit['kind']}), under {edit['plugin']}, "
            f"with the options of {edit['inherits_from']}{runc}."
        )


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[Any]:
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        yield f"{title}: none\n"
        return
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    yield shown
    yield ""
