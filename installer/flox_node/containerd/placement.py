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

from flox_node.containerd import block, schema
from flox_node.containerd.document import parse
from flox_node.containerd.editor import Handler, Patch, inherited_table, register, table_for
from flox_node.containerd.effective import Effective, LoadedFile, MapReader, Reader, covers, load
from flox_node.containerd.runtimes import CriSettings
from flox_node.errors import RefusedError

DROP_IN = "50-flox-node.toml"
_HEAD = "# flox-node: this file is written and removed by flox-node; its handler belongs to the imports of {root}"


@dataclass(frozen=True)
class Edit:
    """One file to write. `before` is None where the file does not exist yet."""

    path: str
    kind: Literal["in-place", "drop-in"]
    before: bytes | None
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


def place(effective: Effective, reader: Reader, handler: Handler, *, adopt: bool = False) -> tuple[Edit, ...]:
    """The edits that register the handler; those with `patch.changed` false are there already.

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
    if path is not None:
        edits: tuple[Edit, ...] = (_drop_in(effective, reader, path, handler),)
    else:
        edits = _in_place(effective, handler, adopt=adopt)
    _prove(effective, reader, handler, edits, adopt=adopt)
    return edits


def _in_place(effective: Effective, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
    """The table in the file that counts and, on 1.x, in a root that a later file shadows now."""
    root = effective.root
    counts = root
    if not effective.containerd.merges_deeply and effective.cri is not None:
        plugin = effective.cri.plugin
        counts = next(
            (file for file in reversed(effective.files) if plugin in schema.table(file.document.data, "plugins")), root
        )
    edits = [_edit(effective, counts, handler, adopt=adopt, context=effective.cri)]
    if counts != root:
        # A root that has no CRI of its own would not work without the later file anyway.
        with contextlib.suppress(RefusedError):
            edits.append(_edit(effective, root, handler, adopt=adopt, context=None))
    return tuple(edits)


def _edit(
    effective: Effective, file: LoadedFile, handler: Handler, *, adopt: bool, context: CriSettings | None
) -> Edit:
    patch = register(file.document.source, handler, effective.containerd, adopt=adopt, context=context)
    return Edit(file.path, "in-place", file.document.source if file.exists else None, patch)


def _drop_in(effective: Effective, reader: Reader, path: str, handler: Handler) -> Edit:
    cri = effective.cri
    assert cri is not None, "place() checked it"
    root = effective.root
    plugin = schema.plugin_id(root.document.data, effective.containerd)
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
    same = before is not None and parse(before, effective.containerd).data == parse(result, effective.containerd).data
    return Edit(
        path,
        "drop-in",
        before,
        Patch(before or b"" if same else result, not same, plugin, inherited, False, inner, parent_name),
    )


def _prove(effective: Effective, reader: Reader, handler: Handler, edits: tuple[Edit, ...], *, adopt: bool) -> None:
    """Load the configuration with the edits in it: the handler must be there, everything else as it was."""
    after = load(
        effective.root.path,
        MapReader({edit.path: edit.patch.result for edit in edits}, reader),
        effective.containerd,
    )
    old, new = effective.cri, after.cri
    if old is None or new is None or new.state != "ok":
        raise RefusedError(
            f"With the handler, containerd {effective.containerd} would not load this configuration: "
            f"{after.refused or (new.reason if new else '')}",
            remedy="Please report these files; nothing was written.",
        )
    ours = new.runtimes.get(handler.name, {})
    if schema.table(ours, "options").get("BinaryName") != handler.binary_name:
        raise RefusedError(
            f'A handler "{handler.name}" in another file would win over ours.',
            remedy="`flox-node containerd explain` shows which; remove it there.",
        )
    foreign = old.runtimes.get(handler.name)
    if foreign is not None and not adopt and schema.table(foreign, "options").get("BinaryName") != handler.binary_name:
        raise RefusedError(
            f'A handler "{handler.name}" that is not ours is registered already.',
            remedy="Remove it with the tool that installed it, or use --adopt.",
        )
    others = {name: table for name, table in old.runtimes.items() if name != handler.name}
    if {name: table for name, table in new.runtimes.items() if name != handler.name} != others or (
        new.default_runtime != old.default_runtime
    ):
        raise RefusedError(
            "Registering the handler would change other handlers of this containerd.",
            remedy="Please report these files; nothing was written.",
        )
