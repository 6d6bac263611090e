"""Where the handler belongs on a node: which files get the table, and the proof in the model that nothing else changes.

1.x         in place: in the last file that defines the CRI table, because it alone counts, and in the root, because it
            counts again when that file goes away (NVIDIA's drop-in). Never a file of our own: it would replace it all.
2.0 - 2.2   an own file where the root imports a pattern and uses the id of schema 2: where another schema counts, such
            a file is dead text and hurts nobody. Under the newer id it would hide the runtimes of a root that is
            written anew with schema 2, so there the table lies in the root and goes with it.
2.3 -       an own file where the root imports a pattern, without `version`; else in place in the root.

Where another file's schema makes the place dead (2.0 - 2.2), that file gets the table as well: it counts as long as the
file is what it is, and ours in the usual place counts as soon as it is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.document import parse
from flox_node.containerd.config.editor import (
    Handler,
    Patch,
    inherited_table,
    is_our_binary,
    plugin_candidates,
    register,
    table_for,
)
from flox_node.containerd.config.effective import Effective, LoadedFile, MapReader, Reader, load
from flox_node.containerd.config.ours import (
    DROP_IN,
    HEAD,
    PlacedEdit,
    drop_in_path,
    withdraw,
    withdraw_own_files,
    without_us,
)
from flox_node.containerd.config.runtimes import CriSettings
from flox_node.errors import RefusedError

__all__ = ["DROP_IN", "PlacedEdit", "drop_in", "drop_in_path", "place", "prove", "require_cri", "withdraw"]

_HEAD = f"{HEAD.decode()}this file is written and removed by flox-node; its handler belongs to the imports of {{root}}"


def require_cri(effective: Effective) -> None:
    """Raise RefusedError unless containerd starts with this configuration and has a CRI."""
    if effective.cri is None or effective.cri.state != "ok":
        worst = next(finding for finding in effective.findings if finding.severity == "error")
        raise RefusedError(
            worst.text, remedy="Repair the configuration first; `flox-node containerd explain` shows it."
        )


def place(
    effective: Effective, reader: Reader, handler: Handler, *, adopt: bool = False, rendered: bool = False
) -> tuple[PlacedEdit, ...]:
    """The edits that register the handler; those with `changed` false are there already.

    What ours there is in other places goes, but for copies that mean the same. `rendered`: the root is a distribution's
    to write, at every start, and what it imports is the only place for others.

    Raises:
        RefusedError: without us containerd would not start or have no CRI, a handler of this name is not ours, or there
            is no place where nothing else would change, now or when another file goes.
    """
    places = _Places(effective, reader, handler, adopt, rendered)
    require_cri(places.bare)
    errors: list[RefusedError] = []
    for way in places.ways():
        try:
            edits = way()
            prove(effective, places.bare, handler, edits)
        except RefusedError as error:
            errors.append(error)
        else:
            return edits
    raise errors[0]


@dataclass(frozen=True)
class _Places:
    """The ways to register the handler with one configuration, best first, each unproven."""

    effective: Effective
    reader: Reader
    handler: Handler
    adopt: bool
    rendered: bool

    @cached_property
    def bare(self) -> Effective:
        return without_us(self.effective, self.handler)

    @property
    def cri(self) -> CriSettings:
        assert self.bare.cri is not None, "place() checked it"
        return self.bare.cri

    def ways(self) -> Iterator[Callable[[], tuple[PlacedEdit, ...]]]:
        rivals = _foreign(self.effective, self.handler)
        if not self.effective.containerd.merges_deeply:
            yield self._in_place_on_1x
            return
        if rivals and not self.adopt:
            raise RefusedError(
                f'{rivals[0][0].path}: a handler "{self.handler.name}" that is not ours is registered already.',
                remedy="Remove it with the tool that installed it, or use --adopt: removal brings its lines back.",
            )
        if instead := [*rivals, *_adopted(self.effective, self.handler)]:
            # A foreign handler is replaced where it stands: beside ours, its keys would be merged into ours.
            yield lambda: tuple(self._edit(file, plugin) for file, plugin in instead)
            return
        plugins = plugin_candidates(
            schema.plugin_id(self.bare.root.document.data, self.bare.containerd), self.bare.containerd
        )
        for keep in (True, False):
            for plugin in plugins:
                yield partial(self._at, [partial(self._home, plugin)], keep)
        for file in reversed(self.bare.files[1:]):
            beside = partial(self._edit, file, schema.plugin_id(file.document.data, self.bare.containerd))
            yield partial(self._at, [partial(self._home, plugins[0]), beside], False)
            yield partial(self._at, [beside], False)

    def _at(self, places: list[Callable[[], PlacedEdit]], keep: bool) -> tuple[PlacedEdit, ...]:
        """Register there; what is ours elsewhere goes (with `keep`: only an own file does)."""
        edits = [edit() for edit in places]
        taken, read = {edit.path for edit in edits}, {file.path for file in self.effective.files}
        if keep:
            gone = withdraw_own_files(self.effective, self.reader)
        else:
            gone = withdraw(self.effective, self.reader, self.handler)
        stale = [edit for edit in gone if edit.path not in taken and (edit.kind == "drop-in" or edit.path in read)]
        return (*edits, *stale)

    def _home(self, plugin: str) -> PlacedEdit:
        """Where the table belongs as far as the root file is concerned."""
        own = drop_in_path(self.bare)
        hides_nothing = self.bare.containerd.migrates_each_file or plugin == schema.CRI_GRPC
        if own is not None and (self.rendered or hides_nothing):
            if (others := next((file for file in self.bare.files if file.path == own), None)) is not None:
                return self._edit(others, plugin)
            return drop_in(self.bare, self.reader, own, self.handler, plugin)
        return self._edit(self.bare.root, plugin)

    def _in_place_on_1x(self) -> tuple[PlacedEdit, ...]:
        """The table in the file that counts and in a root that a later file shadows now."""
        root = self.bare.root
        defining = [file for file in self.bare.files if self.cri.plugin in schema.table(file.document.data, "plugins")]
        counts = defining[-1] if defining else root
        edits = [self._edit(counts, self.cri.plugin)]
        if counts != root:
            # A root that has no CRI of its own would not work without the later file anyway.
            with contextlib.suppress(RefusedError):
                edits.append(self._edit(root, None))
        return self._at([partial(lambda edit: edit, edit) for edit in edits], keep=True)

    def _edit(self, file: LoadedFile, plugin: str | None) -> PlacedEdit:
        """The table in a file as it is now; without `plugin`, as if there were no other file."""
        before = self.reader.read_optional(file.path) if file.exists else None
        context = self.cri if plugin is not None else None
        patch = register(
            before or b"", self.handler, self.bare.containerd, adopt=self.adopt, context=context, plugin=plugin
        )
        return PlacedEdit(file.path, before, patch.result, "in-place", patch)


def _foreign(effective: Effective, handler: Handler) -> list[tuple[LoadedFile, str | None]]:
    """The files that define a handler of this name that is not ours, each with its plugin id."""
    found: list[tuple[LoadedFile, str | None]] = []
    for file in effective.files:
        for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME):
            table = schema.table(file.document.data, "plugins", plugin, "containerd", "runtimes", handler.name)
            if table and not is_our_binary(schema.table(table, "options").get("BinaryName"), handler):
                found.append((file, plugin))
    return found


def _adopted(effective: Effective, handler: Handler) -> list[tuple[LoadedFile, str | None]]:
    """The files where ours stands in the place of a foreign handler, each with its plugin id."""
    found: list[tuple[LoadedFile, str | None]] = []
    for file in effective.files:
        marked = block.find(file.document, handler.name)
        for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME):
            runtimes = schema.table(file.document.data, "plugins", plugin, "containerd", "runtimes")
            if marked and marked.adopted and handler.name in runtimes:
                found.append((file, plugin))
    return found


def drop_in(effective: Effective, reader: Reader, path: str, handler: Handler, plugin: str) -> PlacedEdit:
    """A file of our own at `path` with the handler's table, as it follows from the configuration without us."""
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
    if before is not None and _meaning(before, effective) == _meaning(result, effective):
        result = before
    patch = Patch(result, result != before, plugin, inherited, False, inner, parent_name)
    return PlacedEdit(path, before, result, "drop-in", patch)


def _meaning(source: bytes, effective: Effective) -> dict[str, Any] | None:
    """What a file of our own says; None where it is broken."""
    try:
        return schema.meaning(parse(source, effective.containerd).data)
    except RefusedError:
        return None


def prove(effective: Effective, bare: Effective, handler: Handler, edits: tuple[PlacedEdit, ...]) -> None:
    """Load the configuration with the edits in it: the handler must be there, everything else as it is without us.

    And so it must stay when another file goes away, or all of them: a neighbour that leaves may not take its own
    settings back and find that ours hide those of the root.

    Raises:
        RefusedError: what would be otherwise.
    """
    root, containerd = effective.root.path, effective.containerd
    written = {edit.path: edit.after for edit in edits if edit.changed}
    after = load(root, MapReader(written, effective.reader), containerd) if written else effective
    old, new = bare.cri, after.cri
    if old is None or new is None or new.state != "ok":
        raise RefusedError(
            f"With the handler, containerd {containerd} would not load this configuration: "
            f"{after.refused or (new.reason if new else '')}",
            remedy="Please report these files; nothing was written.",
        )
    _, parent = inherited_table(old, handler.name)
    if schema.meaning(new.runtimes.get(handler.name, {})) != schema.meaning(table_for(handler, parent)):
        raise RefusedError(
            f'Another file says something about the handler "{handler.name}" that would win over ours or mix with it, '
            "or its schema makes ours dead text.",
            remedy="`flox-node containerd explain` shows which; remove it there.",
        )
    if not new.same_but(old, handler.name):
        raise RefusedError(
            "Registering the handler would change other settings of this containerd.",
            remedy="Please report these files; nothing was written.",
        )
    others = tuple(file.path for file in bare.files[1:])
    for gone in filter(None, dict.fromkeys([*((path,) for path in others), others])):
        hidden: dict[str, bytes | None] = dict.fromkeys(gone)
        alone = load(root, MapReader(hidden, bare.reader), containerd)
        with_us = load(root, MapReader(hidden, after.reader), containerd)
        if alone.cri is None or alone.cri.state != "ok":
            continue  # they need that file
        if with_us.cri is None or not with_us.cri.same_handlers_but(alone.cri, handler.name):
            raise RefusedError(
                "With the handler, other settings of this containerd would be lost as soon as "
                f"{' and '.join(gone)} {'goes' if len(gone) == 1 else 'go'} away.",
                remedy="Give all files of the configuration the schema of the root file; "
                "`flox-node containerd explain` shows them.",
            )
