"""The vendor's configuration is read-only, and its unit says where: a copy in /etc, and a drop-in unit naming it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, strip
from flox_node.containerd.config.effective import MapReader, Reader
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

_COPY_OF = "# flox-node: its configuration is a copy of "
_COPIED = "# flox-node: as it was then: sha256 "


@known
@dataclass(frozen=True)
class Relocated:
    """Flatcar: `vendor` is copied to `config`, and `unit_file` sets CONTAINERD_CONFIG to it."""

    kind: ClassVar[str] = "relocated"

    config: str
    vendor: str
    unit_file: str

    def unit_text(self, copied: str) -> bytes:
        """The content of the drop-in unit. `copied` is the digest of the vendor's file of which the copy was made."""
        return (
            "# flox-node: this file is written and removed by flox-node.\n"
            f"{_COPY_OF}{self.vendor}\n"
            f"{_COPIED}{copied}\n"
            f"[Service]\nEnvironment=CONTAINERD_CONFIG={self.config}\n"
        ).encode()

    @classmethod
    def found_in(cls, reader: Reader, config: str, unit_file: str) -> Relocated | None:
        """The one that our drop-in unit tells of; None where there is no such unit."""
        for line in (reader.read_optional(unit_file) or b"").decode(errors="replace").splitlines():
            if line.startswith(_COPY_OF):
                return cls(config, line.removeprefix(_COPY_OF), unit_file)
        return None

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        here = reader.read_optional(self.config)
        vendor = reader.read_optional(self.vendor)
        if here is None and vendor is None:
            raise RefusedError(f"Neither {self.config} nor {self.vendor} is there.")
        copied = self._copied(reader)
        if here is not None and copied not in ("", _digest(vendor)) and self._is_as_copied(reader, version, handler):
            raise RefusedError(
                f"{self.vendor} was replaced since {self.config} was copied from it: what it says now is not in force.",
                remedy="Run `flox-node uninstall`, then `flox-node install`: the copy is made anew.",
            )
        if here not in (None, vendor) and reader.read_optional(self.unit_file) is None:
            raise RefusedError(
                f"{self.config} is there, but containerd does not read it: it was started with {self.vendor}.",
                remedy=f"Remove {self.config}, or have the unit name it (CONTAINERD_CONFIG).",
            )
        below = MapReader({self.config: vendor}, reader) if here is None else reader
        placed = Plain(self.config).edits(below, version, handler, adopt=adopt)
        files = tuple(Edit(self.config, None, e.after) if here is None and e.path == self.config else e for e in placed)
        if here is None and all(edit.path != self.config for edit in files):
            files = (Edit(self.config, None, vendor), *files)
        unit = self.unit_text(copied if copied and here is not None else _digest(vendor))
        return changed((*files, SourceEdit(self.unit_file, reader.read_optional(self.unit_file), unit)))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration. A copy that others have edited since stays, and so does the unit file that names it."""
        edits = Plain(self.config).withdrawals(reader, version, handler)
        here = reader.read_optional(self.config)
        left = next((edit.after for edit in edits if edit.path == self.config), here)
        is_ours = left == reader.read_optional(self.vendor) or self._is_as_copied(reader, version, handler)
        if left is not None and not is_ours:
            unit = reader.read_optional(self.unit_file)
            return (*edits, *([] if unit is None else [SourceEdit(self.unit_file, unit, unit)]))
        others = tuple(edit for edit in edits if edit.path != self.config)
        unit = reader.read_optional(self.unit_file)
        return changed(
            (
                *others,
                Edit(self.config, here, None),
                SourceEdit(self.unit_file, unit, None),
            )
        )

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration. Without our copy it is the vendor's file."""
        edits = self.withdrawals(reader, version, handler)
        gone = any(edit.path == self.config and edit.after is None for edit in edits)
        return NextStart(root=self.vendor if gone else "")

    def _copied(self, reader: Reader) -> str:
        """The digest of the vendor's file that was copied; "" where the unit does not tell."""
        lines = (reader.read_optional(self.unit_file) or b"").decode(errors="replace").splitlines()
        return next((line.removeprefix(_COPIED) for line in lines if line.startswith(_COPIED)), "")

    def _is_as_copied(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> bool:
        """Whether nobody but us has written into the copy."""
        here = reader.read_optional(self.config)
        try:
            return here is not None and _digest(strip(here, handler, version).result) == self._copied(reader)
        except RefusedError:
            return False


def _digest(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()
