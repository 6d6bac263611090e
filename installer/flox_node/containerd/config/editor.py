"""Register and remove a runtime handler in one file, every other byte as before. Pure: bytes in, bytes out.

The handler's table is appended (or replaced where it stands) as text and the result is parsed again: it must say what
the source said, plus exactly the tables that were added. Anything else is refused, so no edit can be half right.
"""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.document import Document, Path, parse
from flox_node.containerd.config.merge import merge
from flox_node.containerd.config.runtimes import CriSettings, interpret
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError
from flox_node.names import HANDLER, SHIM

_OUR_BINARY = "flox-runtime"
_BLANK_AT_END = re.compile(r"(?<=\n)[ \t]*\r?\n\Z")
_PARENT_AT_END = re.compile(r"\.runtimes\][ \t]*\r?\n\Z")
_STARTS_BLANK = re.compile(r"[ \t]*(?:\r?\n|\Z)")
_PLACEHOLDER = re.compile(r"\$\{\w+\}|\{\{.*?\}\}")
_ANNOTATIONS = ["flox.dev/*"]


@dataclass(frozen=True)
class Handler:
    """What to register: `binary_name` is options.BinaryName, `runtime_path` (absolute) the shim for containerd."""

    name: str = HANDLER
    binary_name: str | None = SHIM
    runtime_path: str | None = None


@dataclass(frozen=True)
class Patch:
    """The outcome of an edit. `result` is the whole file; with `changed` false it is the source itself."""

    result: bytes
    changed: bool
    plugin_id: str
    inherited: dict[str, Any]
    """What the handler takes over from the default runtime: `options` (without BinaryName) and `base_runtime_spec`."""
    added_runc: bool
    inner_runtime: str | None
    """BinaryName of the runtime that the handler inherits from; None where it has none (the shim's default: runc)."""
    inherited_from: str = ""
    """The name of that runtime."""
    adopted: str = ""
    """The text of a foreign handler of the same name that was replaced (`adopt`); `remove` puts it back."""


def register(
    source: bytes,
    handler: Handler,
    version: ContainerdVersion,
    *,
    template: bool = False,
    adopt: bool = False,
    context: CriSettings | None = None,
    plugin: str | None = None,
) -> Patch:
    """Register the handler in this file.

    `template` accepts a template of a distribution whose rendered form is live (`${RUNTIME}` as default runtime).
    `adopt` replaces a handler that is not ours. A file stands alone unless `context` says otherwise: the CRI of the
    whole configuration, whose default runtime is inherited from, and `plugin`, the id that other files decide.

    Raises:
        RefusedError: registering would be wrong or cannot be done without touching other bytes.
    """
    document = parse(source, version)
    schema.check_supported(version)
    schema.check_schema(document.version, version)
    marked = block.find(document, handler.name)
    base, slot = _strip(document, handler, version, restore=False)
    adopted = marked.adopted if marked else ""
    plugin = plugin or schema.plugin_id(base.data, version)
    target = (*_runtimes_path(plugin), handler.name)
    if any(block.below(statement, (target,)) for statement in base.statements):
        if not adopt:
            raise RefusedError(
                f'Line {base.line_of(target)}: a handler "{handler.name}" that is not ours is registered already '
                f"({_summary(schema.table(base.data, *target))}).",
                remedy="Remove it with the tool that installed it, or use --adopt: removal brings its lines back.",
            )
        adopted, slot, base = _cut_foreign(base, target, version)

    alone = interpret(merge([base], version), version)
    cri = context or alone
    if cri.state == "disabled":
        raise RefusedError(
            f"The CRI plugin is disabled: {cri.reason} The kubelet cannot use this containerd.",
            remedy="Take it out of disabled_plugins (Docker's package ships such a file; containerd's own does not).",
        )
    if cri.state == "dead" and not (template and _PLACEHOLDER.search(cri.default_runtime)):
        raise RefusedError(
            f"The CRI plugin does not load with this file even without us: {cri.reason}",
            remedy="Define that runtime or correct the name; use --template if the file is filled in later.",
        )
    parent_name, parent = inherited_table(cri, handler.name, template=template)
    table = table_for(handler, parent)
    for candidate in plugin_candidates(plugin, version) if context is None else [plugin]:
        tables = _tables(base, candidate, handler.name, table, version)
        result = _insert(base, tables, slot, handler.name, adopted, version)
        after = interpret(merge([result], version), version)
        if context is not None or after.same_but(alone, handler.name):
            plugin, target = candidate, (*_runtimes_path(candidate), handler.name)
            break
    else:
        raise RefusedError(
            "Registering the handler in this file would change other settings of its containerd.",
            remedy="Please report the file; register the handler by hand meanwhile.",
        )
    here = schema.table(document.data, *target)
    same = (
        schema.meaning(here) == schema.meaning(table)
        and _replaced(result.data, target, here) == document.data
        and not (adopted and not marked)
    )
    options = dict(parent.get("options", {}))
    inner = options.pop("BinaryName", None) or None
    inherited = {"options": options} if options else {}
    if "base_runtime_spec" in table:
        inherited["base_runtime_spec"] = table["base_runtime_spec"]
    return Patch(
        result=source if same else result.source,
        changed=not same,
        plugin_id=plugin,
        inherited=inherited,
        added_runc=len(tables) > 1,
        inner_runtime=inner,
        inherited_from=parent_name,
        adopted=adopted,
    )


def remove(source: bytes, handler: Handler, version: ContainerdVersion) -> Patch:
    """Take our handler out of this file for good: see `strip`.

    Raises:
        RefusedError: the handler is the default runtime, or its lines cannot be cut out alone.
    """
    document = parse(source, version)
    for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME):
        section = schema.table(document.data, "plugins", plugin, "containerd")
        if section.get("default_runtime_name") == handler.name and _is_ours(
            document, handler, (*_runtimes_path(plugin), handler.name)
        ):
            raise RefusedError(
                f'"{handler.name}" is the default runtime: without it the CRI plugin would not load.',
                remedy="Set default_runtime_name to another runtime first.",
            )
    return strip(source, handler, version)


def strip(source: bytes, handler: Handler, version: ContainerdVersion) -> Patch:
    """This file without our handler, under whatever plugin id it stands; a file without it comes back unchanged.

    Lines that others added since stay. A `runc` table that we added goes with it, unless it was edited or the runtimes
    that others added since would leave containerd 1.x without its default. From a file that somebody broke our marks
    tell which lines are ours.

    Raises:
        RefusedError: its lines cannot be cut out alone.
    """
    try:
        document = parse(source, version)
    except RefusedError:
        if (rest := _without_marked_lines(source, handler)) is None:
            raise
        return Patch(rest, rest != source, "", {}, added_runc=False, inner_runtime=None)
    result, _ = _strip(document, handler, version, restore=True)
    plugin = schema.plugin_id(result.data, version)
    return Patch(result.source, result.source != source, plugin, {}, added_runc=False, inner_runtime=None)


def _without_marked_lines(source: bytes, handler: Handler) -> bytes | None:
    """A file that is no TOML without the lines between our marks; None where ours is in it in another way."""
    text = source.decode("utf-8", "surrogateescape")
    marked = block.find_in_text(text, handler.name)
    if marked is None:
        return None if _OUR_BINARY in text else source
    text = text[: marked.start] + marked.adopted + text[marked.end :]
    return None if _OUR_BINARY in text else text.encode("utf-8", "surrogateescape")


def cut_out(document: Document, handler: Handler, version: ContainerdVersion) -> bytes | None:
    """The file without our handler, a foreign one that ours replaced back; None without any, or if it cannot be cut."""
    try:
        result, slot = _strip(document, handler, version, restore=True)
    except RefusedError:
        return None
    return None if slot is None else result.source


def _strip(
    document: Document, handler: Handler, version: ContainerdVersion, *, restore: bool
) -> tuple[Document, int | None]:
    """The document without our tables, under any plugin id, and the place where they stood (None: there were none).

    With `restore`, a foreign handler that we replaced comes back.
    """
    slot: int | None = None
    for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME):
        target = (*_runtimes_path(plugin), handler.name)
        if _is_ours(document, handler, target):
            document, slot = _without_ours(document, handler, target, version, restore=restore)
    return document, slot


def _tables(
    base: Document, plugin: str, handler: str, table: dict[str, Any], version: ContainerdVersion
) -> dict[Path, dict[str, Any]]:
    """What has to be added under this plugin id: the handler, and `runc` where 1.x would lose its built-in one."""
    path = _runtimes_path(plugin)
    _refuse_inline_parents(base, (*path, handler))
    tables: dict[Path, dict[str, Any]] = {}
    if not version.keeps_builtin_runc and not schema.table(base.data, *path):
        tables[(*path, schema.BUILTIN_DEFAULT)] = {"runtime_type": schema.RUNC_V2}
    tables[(*path, handler)] = table
    return tables


def plugin_candidates(plugin: str, version: ContainerdVersion) -> list[str]:
    """The ids to try, best first: on 2.x the rule's choice can change what else is in force, and another one does not.

    A first runtime under schema 2's id switches on image settings that 2.x ignored without one; and 2.3 still honours
    that id in a file with version = 3, until the newer id has runtimes.
    """
    return [plugin] if version.major == 1 else list(dict.fromkeys([plugin, schema.CRI_RUNTIME, schema.CRI_GRPC]))


def table_for(handler: Handler, parent: Mapping[str, Any]) -> dict[str, Any]:
    """The handler's table, with what it inherits from the table `parent` of another runtime."""
    table: dict[str, Any] = {"runtime_type": schema.RUNC_V2}
    if handler.runtime_path:
        table["runtime_path"] = handler.runtime_path
    table["pod_annotations"] = list(_ANNOTATIONS)
    table["container_annotations"] = list(_ANNOTATIONS)
    if parent.get("base_runtime_spec"):
        table["base_runtime_spec"] = parent["base_runtime_spec"]
    options = {name: value for name, value in parent.get("options", {}).items() if name != "BinaryName"}
    if handler.binary_name:
        options = {"BinaryName": handler.binary_name, **options}
    if options:
        table["options"] = options
    return table


def _runtimes_path(plugin: str) -> Path:
    return ("plugins", plugin, "containerd", "runtimes")


def inherited_table(cri: CriSettings, ours: str, *, template: bool = False) -> tuple[str, Mapping[str, Any]]:
    """The runtime whose options the handler takes over: the default one if it runs runc, else `runc`."""
    for name in (cri.default_runtime, schema.BUILTIN_DEFAULT):
        table = cri.runtimes.get(name)
        if table is None or name == ours:
            continue
        if not isinstance(table.get("options", {}), dict):
            raise RefusedError(f'`options` of runtime "{name}" is no table.', remedy="Correct it first.")
        kind = table.get("runtime_type", "")
        if kind in (schema.RUNC_V2, schema.RUNC_V1) or (template and _PLACEHOLDER.search(str(kind))):
            return name, table
        if kind == schema.LINUX_V1:
            return name, _from_linux_v1(table)
    kind = cri.runtimes.get(cri.default_runtime, {}).get("runtime_type")
    raise RefusedError(
        f'The default runtime "{cri.default_runtime}" is of type {kind!r}, '
        f'and there is no "runc" of type {schema.RUNC_V2} to take the options from.',
        remedy=f'Define a runtime "runc" with runtime_type = "{schema.RUNC_V2}".',
    )


def _from_linux_v1(table: Mapping[str, Any]) -> dict[str, Any]:
    """The oldest way to run runc, in the terms of runc v2."""
    old = table.get("options", {})
    options = {
        "BinaryName": table.get("runtime_engine") or old.get("Runtime"),
        "Root": table.get("runtime_root") or old.get("RuntimeRoot"),
        "SystemdCgroup": old.get("SystemdCgroup"),
    }
    return {**table, "options": {name: value for name, value in options.items() if value is not None}}


def _refuse_inline_parents(document: Document, target: Path) -> None:
    for statement in document.statements:
        length = len(statement.path)
        is_parent = length < len(target) and statement.path == target[:length]
        if is_parent and statement.kind != "table":
            name = ".".join(block.key(part) for part in statement.path)
            what = "an inline table" if statement.kind == "value" else "an array of tables"
            raise RefusedError(
                f"Line {statement.line}: `{name}` is {what}, which TOML does not let anybody extend.",
                remedy=f"Write it as a table with a header: [{name}].",
            )


def _is_ours(document: Document, handler: Handler, target: Path) -> bool:
    """Whether the table at `target` is ours: between our marks, or our binary (a tool may have dropped comments)."""
    marked = block.find(document, handler.name)
    inside = [s for s in document.statements if block.below(s, (target,))]
    if not inside:
        return False
    if marked and all(marked.start <= s.start < marked.end for s in inside):
        return True
    table = schema.table(document.data, *target)
    if handler.binary_name is None and handler.runtime_path and table.get("runtime_path") == handler.runtime_path:
        return True
    return is_our_binary(schema.table(table, "options").get("BinaryName"), handler)


def is_our_binary(binary: object, handler: Handler | None = None) -> bool:
    """Whether this BinaryName is our shim, of this (`handler`) or of another installation."""
    ours = handler is not None and binary == handler.binary_name
    return isinstance(binary, str) and (ours or posixpath.basename(binary) == _OUR_BINARY)


def _without_ours(
    document: Document,
    handler: Handler,
    target: Path,
    version: ContainerdVersion,
    *,
    restore: bool,
) -> tuple[Document, int]:
    """The document without our table, and the place where it stood."""
    marked = block.find(document, handler.name)
    runc = (*target[:-1], schema.BUILTIN_DEFAULT)
    if marked is None or not all(
        marked.start <= s.start < marked.end for s in document.statements if block.below(s, (target,))
    ):
        text, slot = _cut(document, target)
        if marked is None:
            before, after = block.without_stray_marks(text[:slot], text[slot:], handler.name)
            if blank := _STARTS_BLANK.match(after):  # a tool that wrote the file anew set such a line between tables
                if _PARENT_AT_END.search(before):
                    after = after[blank.end() :]
                else:
                    before = _BLANK_AT_END.sub("", before)
            text, slot = before + after, len(before)
    else:
        ours = (target, runc) if _runc_is_ours(document, marked, target, runc) else (target,)
        kept = block.foreign_lines(document, marked, ours) + (marked.adopted if restore else "")
        before, after = document.text[: marked.start], document.text[marked.end :]
        slot = len(before)
        if marked.newline_added and not after and not kept:
            before = before.removesuffix(marked.newline)
            slot = len(before)
        if kept and after and not kept.endswith("\n"):
            kept += marked.newline
        text = before + kept + after
    result = parse(document.encode(text), version)
    expected = _pruned(_without(document.data, target), target)
    if _pruned(result.data, target) not in (expected, _pruned(_without(expected, runc), target)) and not (
        marked and marked.adopted
    ):
        raise _cannot_cut(document, target)
    return result, slot


def _runc_is_ours(document: Document, marked: block.Marked, target: Path, runc: Path) -> bool:
    """Whether a `runc` table between our marks is the one that we added, and can go without hurting anybody."""
    statements = [s for s in document.statements if block.below(s, (runc,))]
    others = set(schema.table(document.data, *target[:-1])) - {target[-1], schema.BUILTIN_DEFAULT}
    return (
        bool(statements)
        and all(marked.start <= s.start < marked.end for s in statements)
        and schema.table(document.data, *runc) == {"runtime_type": schema.RUNC_V2}
        and not others
    )


def _cut_foreign(document: Document, target: Path, version: ContainerdVersion) -> tuple[str, int, Document]:
    """Cut a foreign handler out: its text, where it stood, and the document without it."""
    text, slot = _cut(document, target)
    adopted = document.text[slot : slot + len(document.text) - len(text)]
    result = parse(document.encode(text), version)
    if _pruned(result.data, target) != _pruned(_without(document.data, target), target):
        raise _cannot_cut(document, target)
    return adopted, slot, result


def _cut(document: Document, target: Path) -> tuple[str, int]:
    """The text without the statements of one table, which must stand together, and the place where they stood."""
    statements = document.statements
    inside = [index for index, s in enumerate(statements) if block.below(s, (target,))]
    if inside[-1] - inside[0] + 1 != len(inside):
        raise _cannot_cut(document, target)
    start, end = statements[inside[0]].start, statements[inside[-1]].end
    return document.text[:start] + document.text[end:], start


def _cannot_cut(document: Document, target: Path) -> RefusedError:
    return RefusedError(
        f'Line {document.line_of(target)}: the lines of "{target[-1]}" cannot be cut out without touching others.',
        remedy="Remove that handler from the file by hand.",
    )


def _insert(
    base: Document,
    tables: Mapping[Path, Mapping[str, Any]],
    slot: int | None,
    name: str,
    adopted: str,
    version: ContainerdVersion,
) -> Document:
    """`base` with our block: at `slot` where a header or nothing follows, else at the end."""
    text = base.text
    following = next((s for s in base.statements if slot is not None and s.start >= slot), None)
    if slot is None or (following is not None and following.kind == "value"):
        slot = len(text)
    before, after = text[:slot], text[slot:]
    newline_added = bool(before) and not before.endswith("\n")
    rendered = block.render(
        name, tables, newline=base.newline, newline_added=newline_added and not after, adopted=adopted
    )
    expected = copy.deepcopy(base.data)
    for path, values in tables.items():
        parent = expected
        for part in path[:-1]:
            parent = parent.setdefault(part, {})
        parent[path[-1]] = dict(values)
    result = parse(base.encode(before + (base.newline if newline_added else "") + rendered + after), version)
    if result.data != expected:
        raise RefusedError(
            "The handler cannot be added to this file without changing what the rest of it says.",
            remedy="Please report the file; register the handler by hand meanwhile.",
        )
    return result


def _replaced(data: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    copied = copy.deepcopy(data)
    schema.table(copied, *path[:-1])[path[-1]] = value
    return copied


def _without(data: dict[str, Any], path: Path) -> dict[str, Any]:
    copied = copy.deepcopy(data)
    schema.table(copied, *path[:-1]).pop(path[-1], None)
    return copied


def _pruned(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """`data` without the empty tables on the way to `path`: dotted keys and headers make them appear and vanish."""
    copied = copy.deepcopy(data)
    for length in range(len(path) - 1, 0, -1):
        parent = schema.table(copied, *path[: length - 1])
        if parent.get(path[length - 1]) == {}:
            del parent[path[length - 1]]
    return copied


def _summary(table: Mapping[str, Any]) -> str:
    shown = [f"{name} = {block.value(table[name])}" for name in ("runtime_type", "runtime_path") if name in table]
    binary = schema.table(dict(table), "options").get("BinaryName")
    return ", ".join([*shown, *([f"BinaryName = {block.value(binary)}"] if binary else [])]) or "an empty table"
