"""Nobody rewrites the configuration: the files themselves are edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config import placement
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Reader, load
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.version import ContainerdVersion


@known
@dataclass(frozen=True)
class Plain:
    """The root file and its imports, as `placement` decides."""

    kind: ClassVar[str] = "plain"

    config: str

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        return changed(placement.place(load(self.config, reader, version), reader, handler, adopt=adopt))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        return placement.withdraw(load(self.config, reader, version), reader, handler)

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration."""
        return NextStart()
