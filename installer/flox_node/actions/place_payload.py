"""A payload on the node: its store paths, their registration and roots, and its folder of programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from flox_node.actions.base import Before, Missing, Progress, register
from flox_node.errors import UsageError
from flox_node.host import Host
from flox_node.payload import Manifest, Payload, changed_files, damaged, place, survey, unplace
from flox_node.payload.manifest import NAME, parse
from flox_node.payload.place import folder_of


@register
@dataclass(frozen=True)
class PlacePayload:
    """Place the payload `payload_id`. One read back from the receipt has no `source`, and can only be taken back."""

    kind: ClassVar[str] = "place-payload"

    payload_id: str
    source: Payload | None = field(default=None, metadata={"recorded": False}, compare=False)
    repair: bool = field(default=False, metadata={"recorded": False}, compare=False)

    @classmethod
    def of(cls, payload: Payload, *, repair: bool = False) -> PlacePayload:
        """The action that places this payload; with `repair` it compares digests of what is there."""
        return cls(payload.manifest.id, payload, repair)

    @property
    def key(self) -> str:
        """See Action: one for each payload, since an upgrade leaves the old one until nothing uses it."""
        return f"{self.kind}:{self.payload_id}"

    def describe(self) -> str:
        """See Action."""
        if self.source is None:
            return f"place payload {self.payload_id}"
        manifest = self.source.manifest
        return f"place payload {self.payload_id} ({len(manifest.store_paths)} store paths, {manifest.size >> 20} MiB)"

    def inspect(self, host: Host) -> Missing | None:
        """See Action."""
        manifest = self.source.manifest if self.source is not None else self._placed_manifest(host)
        if manifest is None:
            return Missing(f"{folder_of(self.payload_id)} is not there")
        found = survey(host, manifest)
        if found.unregistered:
            return Missing(f"{len(found.unregistered)} of {len(manifest.store_paths)} store paths are not in the store")
        if found.roots:
            return Missing("the payload's garbage collection roots are not all there")
        if found.has_folder:
            broken = damaged(host, manifest) if self.repair else ()
            return Missing(f"damaged: {', '.join(broken)}") if broken else None
        changed = changed_files(host, manifest)
        return Missing(f"{', '.join(changed) or folder_of(self.payload_id)} is not what was placed")

    def changed_files(self, host: Host) -> tuple[str, ...]:
        """The files of the payload's folder that are gone or changed, as far as names, sizes and modes tell."""
        manifest = self.source.manifest if self.source is not None else self._placed_manifest(host)
        return () if manifest is None else changed_files(host, manifest)

    def preview(self, host: Host) -> str:
        """See Action."""
        return ""

    def capture(self, host: Host) -> Before | None:
        """Nothing to know: what is taken back is ours by name, and the store is its folder's action's business."""
        return {}

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action."""
        if self.source is None:
            raise UsageError("A payload is placed from its source.", remedy="Name it with --payload.")
        place(host, self.source, repair=self.repair)

    def revert(self, host: Host, before: Before, *, purge: bool) -> None:
        """See Action."""
        unplace(host, self.payload_id)

    def _placed_manifest(self, host: Host) -> Manifest | None:
        data = host.files.read_optional(f"{folder_of(self.payload_id)}/{NAME}")
        return None if data is None else parse(data)
