"""The configuration is rendered at every start from a template that is TOML itself: MicroK8s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, register, remove
from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.registration.base import changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError


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
        return changed((SourceEdit(self.template, source, remove(source, handler, version).result),))
