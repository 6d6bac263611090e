"""Where the handler belongs on a node: which files get the table, and the proof in the model that nothing else changes.

1.x     in place: in the last file that defines the CRI table, because it alone counts, and in the root, because it
        counts again when that file goes away (NVIDIA's drop-in). Never a drop-in of our own: it would replace it all.
2.x     where the root imports a pattern, an own file in that folder, without `version`; else in place in the root.
"""

from __future__ import annotations

import contextlib
import posixpath
from dataclasses import dataclass
from typing import Any, Literal

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.document import parse
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import (
    Handler,
    Patch,
    inherited_table,
    is_our_binary,
    plugin_candidates,
    register,
    remove,
    table_for,
)
from flox_node.containerd.config.effective import Effective, LoadedFile, MapReader, Reader, covers, load
from flox_node.containerd.config.runtimes import CriSettings
from flox_node.errors import RefusedError

DROP_IN = "50-flox-node.toml"
_HEAD = "# flox-node: this file is written and removed by flox-node; its handler belongs to the imports of {root}"


@dataclass(frozen=True)
class PlacedEdit(Edit):
    """An edit of containerd's own configuration, with what the editor did."""

    kind: Literal["in-place", "drop-in"]
    patch: Patch


def drop_in_path(effective: Effective) -> str | None:
    """The place of our own file: the first pattern of the root's imports that takes it in; None on 1.x or without."""
    if not effective.containerd.merges_deeply:
        return None
    root = effective.root
    for entry in root.document.data.get("imports", ()):
        pattern = posixpath.normpath(posixpath.join(posixpath.dirname(root.path), entry))
        path = posixpath.join(posixpath.dirname(pattern), DROP_IN)
        if "*" not in posixpath.dirname(pattern) and covers(pattern, path):
            return path
    return None


def place(effective: Effective, reader: Reader, handler: Handler, *, adopt: bool = False) -> tuple[PlacedEdit, ...]:
    """The edits that register the handler; those with `changed` false are there already.

    Raises:
        RefusedError: containerd does not start or has no CRI with these files, a handler of this name is not ours,
            or the model shows that something else would change.
    """
    cri = effective.cri
    if cri is None or cri.state != "ok":
        worst = next(finding for finding in effective.findings if finding.severity == "error")
        raise RefusedError(
            worst.text, remedy="Repair the configuration first; `flox-node containerd explain` shows it."
        )
    path = drop_in_path(effective)
    rivals = _foreign(effective, handler)
    if path is None or (rivals and adopt):
        edits = _in_place(effective, handler, rivals, adopt=adopt)
        prove(effective, reader, handler, edits)
        return edits
    if rivals:
        raise RefusedError(
            f'{rivals[0][0].path}: a handler "{handler.name}" that is not ours is registered already.',
            remedy="Remove it with the tool that installed it, or use --adopt: removal brings its lines back.",
        )
    plugin = schema.plugin_id(effective.root.document.data, effective.containerd)
    errors: list[RefusedError] = []
    for candidate in plugin_candidates(plugin, effective.containerd):
        edits = (drop_in(effective, reader, path, handler, candidate),)
        try:
            prove(effective, reader, handler, edits)
        except RefusedError as error:
            errors.append(error)
        else:
            return edits
    raise errors[0]


def _foreign(effective: Effective, handler: Handler) -> list[tuple[LoadedFile, str | None]]:
    """The files that define a handler of this name that is not ours, each with its plugin id."""
    found: list[tuple[LoadedFile, str | None]] = []
    for file in effective.files:
        for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME):
            table = schema.table(file.document.data, "plugins", plugin, "containerd", "runtimes", handler.name)
            if table and not is_our_binary(schema.table(table, "options").get("BinaryName"), handler):
                found.append((file, plugin))
    return found


def withdraw(effective: Effective, reader: Reader, handler: Handler) -> tuple[PlacedEdit, ...]:
    """The edits that take the handler out again, wherever it stands now; () where it is nowhere.

    Works for a configuration that containerd would refuse, too, as far as its files can be read.
    """
    edits = []
    own = drop_in_path(effective)
    paths = dict.fromkeys([*(file.path for file in effective.files), *([own] if own else [])])
    for path in paths:
        source = reader.read_optional(path)
        if source is None:
            continue
        if path == own:
            gone = Patch(b"", True, "", {}, added_runc=False, inner_runtime=None)
            edits.append(PlacedEdit(path, source, None, "drop-in", gone))
            continue
        patch = remove(source, handler, effective.containerd)
        if patch.changed:
            edits.append(PlacedEdit(path, source, patch.result, "in-place", patch))
    return tuple(edits)


def _in_place(
    effective: Effective, handler: Handler, rivals: list[tuple[LoadedFile, str | None]], *, adopt: bool
) -> tuple[PlacedEdit, ...]:
    """The table in the file that counts and, on 1.x, in a root that a later file shadows now."""
    root, cri = effective.root, effective.cri
    assert cri is not None, "place() checked it"
    context = None if len(effective.files) == 1 else cri
    if effective.containerd.merges_deeply:
        # A foreign handler is replaced where it stands: beside ours, its keys would be merged into ours.
        places = rivals if adopt and rivals else [(root, None)]
        return tuple(_edit(effective, file, handler, adopt, context, plugin) for file, plugin in places)
    defining = [file for file in effective.files if cri.plugin in schema.table(file.document.data, "plugins")]
    counts = defining[-1] if defining else root
    edits = [_edit(effective, counts, handler, adopt, context, cri.plugin)]
    if counts != root:
        # A root that has no CRI of its own would not work without the later file anyway.
        with contextlib.suppress(RefusedError):
            edits.append(_edit(effective, root, handler, adopt, None, None))
    return tuple(edits)


def _edit(
    effective: Effective,
    file: LoadedFile,
    handler: Handler,
    adopt: bool,
    context: CriSettings | None,
    plugin: str | None,
) -> PlacedEdit:
    patch = register(file.document.source, handler, effective.containerd, adopt=adopt, context=context, plugin=plugin)
    before = file.document.source if file.exists else None
    return PlacedEdit(file.path, before, patch.result, "in-place", patch)


def drop_in(effective: Effective, reader: Reader, path: str, handler: Handler, plugin: str) -> PlacedEdit:
    """A file of our own at `path` with the handler's table, as it follows from the configuration that is in force."""
    cri = effective.cri
    assert cri is not None, "the caller checked it"
    root = effective.root
    parent_name, parent = inherited_table(cri, handler.name)
    before = reader.read_optional(path)
    newline = root.document.newline
    target = ("plugins", plugin, "containerd", "runtimes", handler.name)
    table = table_for(handler, parent)
    text = _HEAD.format(root=root.path) + newline + block.tables_text({target: table}, newline)
    options: dict[str, Any] = dict(parent.get("options", {}))
    inner = options.pop("BinaryName", None) or None
    inherited = {"options": options} if options else {}
    if "base_runtime_spec" in table:
        inherited["base_runtime_spec"] = table["base_runtime_spec"]
    result = text.encode()
    if before is not None and parse(before, effective.containerd).data == parse(result, effective.containerd).data:
        result = before
    patch = Patch(result, result != before, plugin, inherited, False, inner, parent_name)
    return PlacedEdit(path, before, result, "drop-in", patch)


def prove(effective: Effective, reader: Reader, handler: Handler, edits: tuple[PlacedEdit, ...]) -> None:
    """Load the configuration with the edits in it: the handler must be there, everything else as it was."""
    after = load(
        effective.root.path, MapReader({edit.path: edit.after for edit in edits}, reader), effective.containerd
    )
    old, new = effective.cri, after.cri
    if old is None or new is None or new.state != "ok":
        raise RefusedError(
            f"With the handler, containerd {effective.containerd} would not load this configuration: "
            f"{after.refused or (new.reason if new else '')}",
            remedy="Please report these files; nothing was written.",
        )
    wanted = schema.table(
        parse(edits[0].after or b"", effective.containerd).data,
        *("plugins", edits[0].patch.plugin_id, "containerd", "runtimes", handler.name),
    )
    if new.runtimes.get(handler.name) != wanted:
        raise RefusedError(
            f'Another file says something about the handler "{handler.name}" that would win over ours or mix with it.',
            remedy="`flox-node containerd explain` shows which; remove it there.",
        )
    if not new.same_but(old, handler.name):
        raise RefusedError(
            "Registering the handler would change other settings of this containerd.",
            remedy="Please report these files; nothing was written.",
        )
