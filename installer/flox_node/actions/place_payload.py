"""A payload on the node: its store paths, their registration and roots, and its folder of programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from flox_node.actions.base import Action, Before, Gap, Owned, Progress, register
from flox_node.errors import UsageError
from flox_node.host import Host
from flox_node.payload import Manifest, Payload
from flox_node.payload.manifest import NAME, parse
from flox_node.payload.place import changed_files, damaged, folder_of, place, survey, unplace


@register
@dataclass(frozen=True)
class PlacePayload(Action[Gap]):
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
        if self.source is None:
            return f"place payload {self.payload_id}"
        manifest = self.source.manifest
        return f"place payload {self.payload_id} ({len(manifest.store_paths)} store paths, {manifest.size >> 20} MiB)"

    def inspect(self, host: Host) -> Gap | None:
        manifest = self.source.manifest if self.source is not None else self._placed_manifest(host)
        if manifest is None:
            return Gap(f"{folder_of(self.payload_id)} is not there")
        found = survey(host, manifest)
        if found.unregistered:
            return Gap(f"{len(found.unregistered)} of {len(manifest.store_paths)} store paths are not in the store")
        if found.roots:
            return Gap("the payload's garbage collection roots are not all there")
        if found.has_folder:
            broken = damaged(host, manifest) if self.repair else ()
            return Gap(f"damaged: {', '.join(broken)}", broken) if broken else None
        changed = changed_files(host, manifest) or (folder_of(self.payload_id),)
        return Gap(f"{', '.join(changed)} is not what was placed", changed)

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        if self.source is None:
            raise UsageError("A payload is placed from its source.", remedy="Name it with --payload.")
        place(host, self.source, repair=self.repair)

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> None:
        unplace(host, self.payload_id)

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        """Its folder, and its store paths: nobody but Nix removes these."""
        yield Owned(folder_of(self.payload_id))
        manifest = self._placed_manifest(host)
        yield from (Owned(path.path, watched=False) for path in (manifest.store_paths if manifest else ()))

    def _placed_manifest(self, host: Host) -> Manifest | None:
        data = host.files.read_optional(f"{folder_of(self.payload_id)}/{NAME}")
        return None if data is None else parse(data)
