"""The platform copies a file over the configuration when the two differ: EKS' bootstrap.sh on Amazon Linux 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion


@known
@dataclass(frozen=True)
class Copied:
    """Both are edited alike: `source`, which is the durable one, and `config`, which containerd reads now."""

    kind: ClassVar[str] = "copied"

    config: str
    source: str

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        live = Plain(self.config).edits(reader, version, handler, adopt=adopt)
        if reader.read_optional(self.source) is None:
            return live
        durable = Plain(self.source).edits(reader, version, handler, adopt=adopt)
        return changed((*(self._as_source(edit) for edit in durable), *live))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        durable = Plain(self.source).withdrawals(reader, version, handler)
        live = Plain(self.config).withdrawals(reader, version, handler)
        return changed((*(self._as_source(edit) for edit in durable), *live))

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration."""
        return NextStart()

    def _as_source(self, edit: Edit) -> Edit:
        return SourceEdit(edit.path, edit.before, edit.after) if edit.path == self.source else edit
