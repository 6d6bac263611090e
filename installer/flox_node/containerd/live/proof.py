"""Proof before a restart: the node's own containerd reads the configuration as it will be, and tells what it is.

What is dumped is a flat copy: the root and all it imports, with the edits in them, in a folder that no import of the
node covers. So a drop-in is proven without ever lying in its live place. `config dump` hides what stops the daemon (an
import that does not exist) and what it silently drops (clashing schemas): the model finds those, on the same files.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Effective, MapReader, load
from flox_node.containerd.config.ours import without_us
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live.daemon import Daemon
from flox_node.errors import OutsideError, RefusedError
from flox_node.host import Host

FOLDER = "/run/flox-node/proof"
_DUMP_TIMEOUT_S = 30.0
_SHIM_TIMEOUT_S = 10.0
_NOTHING_WRITTEN = "containerd's configuration was not written. `flox-node containerd explain` shows what it is now."
# Of a runtime that a file defines, 1.7 dumps what the file says; of the built-in one, this default, which is the same.
_SAME_AS_UNSET = {"sandbox_mode": "podsandbox", "sandboxer": "podsandbox"}


def prove(
    host: Host, found: Daemon, version: ContainerdVersion, edits: Sequence[Edit], handler: Handler, config: str
) -> str:
    """Show that containerd will be what it is without us, and serve the handler; why that cannot be asked, or "".

    `config` is what it will be started with, which need not be what it was started with.

    Raises:
        RefusedError: containerd would not start, would lose or change a setting, or would not serve the handler.
    """
    live = [edit for edit in edits for edit in edit.live]
    if not live:
        return "the platform makes containerd's configuration when it starts it, so only the CRI can tell"
    before = without_us(load(found.config_path, host.files, version), handler)
    after = load(config, MapReader({edit.path: edit.after for edit in live}, host.files), version)
    if problems := new_findings(before, after):
        raise RefusedError(f"With the handler in it, {found.config_path} would not be safe: {'; '.join(problems)}")
    old, new = _dump(host, found, before), _dump(host, found, after)
    if problems := differences(old, new, handler):
        raise RefusedError(
            f"The node's containerd {version} would not be what it is without us: {'; '.join(problems[:5])}.",
            remedy=_NOTHING_WRITTEN,
        )
    return ""


def try_shim(host: Host, binary_name: str) -> None:
    """Start the handler's binary as containerd will. From 2.0 on, one that hangs keeps the whole CRI down.

    Raises:
        RefusedError: it does not start, or does not end.
    """
    try:
        done = host.processes.run([binary_name, "features"], timeout=_SHIM_TIMEOUT_S)
        if done.returncode != 0:  # an inner runtime older than `features`
            done = host.processes.run([binary_name, "--version"], timeout=_SHIM_TIMEOUT_S)
        problem = _last_line(done.stderr) if done.returncode != 0 else ""
    except (OutsideError, OSError) as error:
        problem = str(error)
    if problem:
        raise RefusedError(f"{binary_name} does not run on this node: {problem}", remedy=_NOTHING_WRITTEN)


def new_findings(before: Effective, after: Effective) -> list[str]:
    """What the model finds wrong with a configuration that was not wrong before; () where all is well."""
    # Two plugin ids in one file are where it has to be so (AKS): that our table is read under its id, the dump shows.
    known = {(finding.code, finding.file) for finding in before.findings}
    return [
        finding.text
        for finding in after.findings
        if finding.severity == "error"
        or (
            (finding.severity == "warning" and finding.code != "two-plugin-ids")
            and (finding.code, finding.file) not in known
        )
    ]


def flat(effective: Effective, folder: str) -> dict[str, bytes]:
    """The files of a configuration as copies in one folder, by name; `root.toml` imports the others in load order."""
    copies: dict[str, bytes] = {}
    names = ["root.toml", *(f"{number}.toml" for number in range(1, len(effective.files)))]
    for name, file in zip(names, effective.files, strict=True):
        text = file.document.text
        for statement in reversed(file.document.statements):
            if statement.path == ("imports",):
                text = text[: statement.start] + text[statement.end :]
        if name == "root.toml" and len(names) > 1:
            text = f"imports = {json.dumps([f'{folder}/{other}' for other in names[1:]])}\n{text}"
        copies[name] = file.document.encode(text)
    return copies


def differences(old: Mapping[str, Any], new: Mapping[str, Any], handler: Handler) -> list[str]:
    """What a dump says differently from an earlier one, the handler itself apart, and what the handler lacks."""
    problems = []
    handlers = list(_tables_of(new, handler.name))
    if not handlers:
        problems.append(f"it would not know the handler {handler.name}")
    elif handlers[-1].get("options", {}).get("BinaryName") != handler.binary_name:
        problems.append(f"the handler {handler.name} would not start {handler.binary_name}")
    was, is_now = dict(_leaves(old, handler.name)), dict(_leaves(new, handler.name))
    for path in sorted(was.keys() | is_now.keys()):
        if was.get(path) != is_now.get(path):
            problems.append(f"{'.'.join(path)} would be {is_now.get(path)!r} and not {was.get(path)!r}")
    return problems


def _dump(host: Host, found: Daemon, effective: Effective) -> dict[str, Any]:
    # 2.0.0 to 2.0.5 dump the root without migrating it (containerd issue 11600).
    version = effective.containerd
    command = "migrate" if (2, 0, 0) <= (version.major, version.minor, version.patch) < (2, 0, 6) else "dump"
    host.files.remove_tree(FOLDER)
    host.files.mkdir(FOLDER, 0o700)  # the files may hold registries' passwords
    try:
        for name, data in flat(effective, FOLDER).items():
            host.files.write_atomic(f"{FOLDER}/{name}", data, 0o600)
        done = host.processes.run(
            [found.exe, "--config", f"{FOLDER}/root.toml", "config", command], timeout=_DUMP_TIMEOUT_S
        )
    finally:
        host.files.remove_tree(FOLDER)
    if done.returncode != 0:
        raise RefusedError(
            f"The node's containerd {version} refuses {found.config_path} with the handler in it: "
            f"{_last_line(done.stderr)}",
            remedy=_NOTHING_WRITTEN,
        )
    try:
        return tomllib.loads(done.stdout.decode())
    except ValueError as error:
        raise RefusedError(f"`{found.exe} config {command}` prints what is no TOML: {error}.") from error


def _tables_of(dump: Mapping[str, Any], handler: str) -> Iterator[dict[str, Any]]:
    for plugin in dump.get("plugins", {}).values():
        runtimes = plugin.get("containerd", {}).get("runtimes", {}) if isinstance(plugin, dict) else {}
        if handler in runtimes:
            yield runtimes[handler]


def _leaves(
    value: Mapping[str, Any], handler: str, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is not the same as saying nothing, with its path; without the handler and the imports."""
    for key, item in value.items():
        here = (*path, key)
        if here == ("imports",) or here[-3:] == ("containerd", "runtimes", handler):
            continue
        if isinstance(item, dict):
            yield from _leaves(item, handler, here)
        elif item and _SAME_AS_UNSET.get(key) != item:
            yield here, item


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
