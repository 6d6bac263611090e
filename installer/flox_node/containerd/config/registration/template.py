"""The configuration is rendered at every start from a template that is TOML itself: MicroK8s."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, register, strip
from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

_PLACEHOLDER = re.compile(r"\$\{\w+\}")


@known
@dataclass(frozen=True)
class Template:
    """`template` is edited; `config` is only what the next start makes of it."""

    kind: ClassVar[str] = "template"

    config: str
    template: str

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        source = reader.read_optional(self.template)
        if source is None:
            raise RefusedError(
                f"{self.template} is not there, from which {self.config} is rendered.",
                remedy="Name the platform with --platform if this is not MicroK8s.",
            )
        patch = register(source, handler, version, template=True, adopt=adopt)
        made = Plain(self.config).edits(reader, version, handler, adopt=adopt)
        return changed((SourceEdit(self.template, source, patch.result, made),))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        source = reader.read_optional(self.template)
        if source is None:
            return ()
        return changed((SourceEdit(self.template, source, strip(source, handler, version).result),))

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration. What is filled in is taken from what was filled in at the last start."""
        source, rendered = reader.read_optional(self.template), reader.read_optional(self.config)
        if source is None or rendered is None:
            return NextStart((self.template,))
        text = strip(source, handler, version).result.decode(errors="surrogateescape")
        values = _filled_in(text, rendered.decode(errors="surrogateescape"))
        for name, value in values.items():
            text = text.replace(name, value)
        return NextStart((self.template,), {self.config: text.encode(errors="surrogateescape")})


def _filled_in(template: str, rendered: str) -> dict[str, str]:
    """The placeholders of a template with their values, from the lines that are the same otherwise."""
    values: dict[str, str] = {}
    for line in template.splitlines():
        names = _PLACEHOLDER.findall(line)
        if not names:
            continue
        parts = (re.escape(part) for part in _PLACEHOLDER.split(line))
        if match := re.search(f"^{'(.*)'.join(parts)}$", rendered, re.MULTILINE):
            values |= {name: value for name, value in zip(names, match.groups(), strict=True) if name not in values}
    return values
