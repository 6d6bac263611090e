"""The root is the image's own, read-only, and imports a folder: a file of ours there, and nothing else is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config import placement
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Reader, load
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError


@known
@dataclass(frozen=True)
class Imported:
    """Flatcar since its image imports /etc/containerd/conf.d: `config` stays as fresh as the image is."""

    kind: ClassVar[str] = "imported"

    config: str

    @classmethod
    def found_in(cls, reader: Reader, config: str, version: ContainerdVersion) -> Imported | None:
        """The one for this root; None where it imports no folder, or 1.x would replace it by that."""
        return cls(config) if placement.drop_in_path(load(config, reader, version)) else None

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        effective = load(self.config, reader, version)
        if placement.drop_in_path(effective) is None:
            raise RefusedError(
                f"{self.config} does not import a folder any more, where a handler could be registered.",
                remedy="Uninstall and install again: the other way is taken then.",
            )
        return changed(placement.place(effective, reader, handler, adopt=adopt, rendered=True))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        return Plain(self.config).withdrawals(reader, version, handler)

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration."""
        return NextStart()
