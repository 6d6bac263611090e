"""One file that has to be written so that containerd serves a handler, whatever the file's language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One file to write: `before` is None where it does not exist yet, `after` None where it has to be removed."""

    path: str
    before: bytes | None
    after: bytes | None

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return self.before != self.after

    @property
    def live(self) -> tuple[Edit, ...]:
        """What containerd itself will read because of this edit: these are the files to prove before a restart."""
        return (self,)


@dataclass(frozen=True)
class SourceEdit(Edit):
    """A file that containerd does not read: the platform makes its configuration of it, at a start or a boot."""

    makes: tuple[Edit, ...] = ()

    @property
    def live(self) -> tuple[Edit, ...]:
        """See Edit: what the next start makes of it, as far as it is known."""
        return self.makes
