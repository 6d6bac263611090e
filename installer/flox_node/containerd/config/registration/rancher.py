"""k3s and RKE2: the configuration is rendered at every start of the service; never edited, never copied.

Newest releases import a folder `config-v3.toml.d`: our own file goes there. Others render a Go template: the text
`{{ template "base" . }}` is what they would render without one, and ours comes behind it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flox_node.containerd.config import block, placement, schema
from flox_node.containerd.config.document import Path, parse
from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, Patch, register, strip
from flox_node.containerd.config.effective import Reader, load
from flox_node.containerd.config.ours import without_us
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

_HEAD = "{{/* flox-node: this file was made by flox-node; the next line is what is rendered without it */}}\n"
_BASE = '{{ template "base" . }}\n'
_V2, _V3 = "config.toml.tmpl", "config-v3.toml.tmpl"


@known
@dataclass(frozen=True)
class Rancher:
    """`config` is the rendered file; templates and folders of drop-ins lie beside it."""

    kind: ClassVar[str] = "rancher"

    config: str

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        effective = load(self.config, reader, version)
        bare = without_us(effective, handler)
        placement.require_cri(bare)
        if not effective.root.exists:
            raise RefusedError(
                f"{self.config} is not there, although the running containerd was started with it.",
                remedy="Restart the service, which renders it, and run the command again.",
            )
        path, before = self._template(reader, version)
        is_in_template = before is not None and block.find_in_text(_text(before), handler.name) is not None
        if placement.drop_in_path(effective) is not None and not is_in_template:
            return changed(placement.place(effective, reader, handler, rendered=True))
        # What the rendered file would have to hold is what the template has to add to it.
        rendered = effective.root.document.source
        context = None if len(bare.files) == 1 else bare.cri
        patch = register(rendered, handler, version, context=context)
        made = placement.PlacedEdit(self.config, rendered, patch.result, "in-place", patch)
        placement.prove(effective, bare, handler, (made,))
        after = _with_block(before, _tables(patch, handler, version), handler)
        return changed((SourceEdit(path, before, after, (made,) if made.changed else ()),))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration. The rendered file is the service's to write again."""
        withdrawn = placement.withdraw(load(self.config, reader, version), reader, handler)
        found: list[Edit] = [edit for edit in withdrawn if edit.path != self.config]
        for name in (_V3, _V2):
            path = posixpath.join(posixpath.dirname(self.config), name)
            before = reader.read_optional(path)
            if before is not None and block.find_in_text(_text(before), handler.name):
                found.append(SourceEdit(path, before, _without_block(before, handler)))
        return changed(tuple(found))

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration. A template that is more than text behind the base cannot be rendered here."""
        path, template = self._template(reader, version)
        rendered = reader.read_optional(self.config)
        # The service's own settings: /etc/rancher/k3s for /var/lib/rancher/k3s/agent/etc/containerd/config.toml.
        folder = f"/etc/rancher/{posixpath.basename(self.config.partition('/agent/')[0])}"
        settings = (f"{folder}/config.yaml", f"{folder}/config.yaml.d")
        untold = dict.fromkeys(settings, "what it means for containerd only a start of the service shows")
        inputs = (path, *settings)
        if template is None or rendered is None:
            return NextStart(inputs, untold=untold)
        text = _text(_without_block(template, handler) or b"").removeprefix(_HEAD)
        base, found, added = text.partition(_BASE.strip())
        if text and (not found or base.strip() or "{{" in added):
            why = "it is a template of its own that only a start renders"
            return NextStart(inputs, untold={**untold, path: why})
        now = _text(strip(rendered, handler, version).result)
        if not now.rstrip().endswith(added.strip()):
            now = now.rstrip("\n") + "\n" + added.lstrip("\n")
        return NextStart(inputs, {self.config: _bytes(now)}, untold)

    def _template(self, reader: Reader, version: ContainerdVersion) -> tuple[str, bytes | None]:
        """The template that the service uses at its next start, and its bytes."""
        folder = posixpath.dirname(self.config)
        names = (_V3, _V2) if version.major >= 2 else (_V2,)
        for name in names:
            path = posixpath.join(folder, name)
            if (source := reader.read_optional(path)) is not None:
                return path, source
        return posixpath.join(folder, names[0]), None


def _tables(patch: Patch, handler: Handler, version: ContainerdVersion) -> Mapping[Path, dict[str, Any]]:
    path: Path = ("plugins", patch.plugin_id, "containerd", "runtimes")
    names = [*([schema.BUILTIN_DEFAULT] if patch.added_runc else []), handler.name]
    return {(*path, name): schema.table(parse(patch.result, version).data, *path, name) for name in names}


def _with_block(before: bytes | None, tables: Mapping[Path, dict[str, Any]], handler: Handler) -> bytes:
    text = _text((_without_block(before, handler) if before is not None else None) or _bytes(_HEAD + _BASE))
    newline_added = not text.endswith("\n")
    ours = block.render(handler.name, tables, newline="\n", newline_added=newline_added)
    return _bytes(text + ("\n" if newline_added else "") + ours)


def _without_block(before: bytes, handler: Handler) -> bytes | None:
    """The template without our lines; None where nothing but our own head is left."""
    text = _text(before)
    marked = block.find_in_text(text, handler.name)
    if marked is not None:
        rest = text[: marked.start]
        if marked.newline_added and not text[marked.end :]:
            rest = rest.removesuffix("\n")
        text = rest + text[marked.end :]
    return None if text == _HEAD + _BASE else _bytes(text)


def _text(source: bytes) -> str:
    return source.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
