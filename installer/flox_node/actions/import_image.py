"""The image that Flox pods name, out of the payload: no registry is needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Action, Before, Gap, Progress, register
from flox_node.containerd.live.images import Archive, ImageStore, read_archive
from flox_node.errors import FloxNodeError
from flox_node.host import Host
from flox_node.names import CURRENT
from flox_node.payload.image import REFERENCE
from flox_node.payload.manifest import EMPTY_IMAGE

ARCHIVE = f"{CURRENT}/{EMPTY_IMAGE}"


@register
@dataclass(frozen=True)
class ImportImage(Action[Gap]):
    """Have the image in the containerd behind `socket`, pinned, so that the kubelet never collects it."""

    kind: ClassVar[str] = "import-image"

    socket: str

    def describe(self) -> str:
        return f"import the image {REFERENCE} into containerd"

    def inspect(self, host: Host) -> Gap | None:
        archive = self._archive(host)
        if archive is None:
            return Gap(f"{ARCHIVE} is not there")
        if self._store(host).digest_of(REFERENCE, pinned=True) != archive.digest:
            return Gap(f"{REFERENCE} is not in containerd, or not pinned")
        return None

    def capture(self, host: Host, gap: Gap | None, known: Before | None) -> Before | None:
        return None if self._store(host).digest_of(REFERENCE) is not None else {"created": True}

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        archive = self._archive(host)
        if archive is not None:
            self._store(host).put(archive)

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> None:
        """Remove the image if an install brought it. A containerd that does not answer keeps it: it is a kilobyte."""
        if not before.get("created"):
            return
        try:
            self._store(host).remove(REFERENCE)
        except FloxNodeError as error:
            progress(f"{REFERENCE} stays: {error.cause}")

    def _store(self, host: Host) -> ImageStore:
        return ImageStore(host.files.real(self.socket))

    def _archive(self, host: Host) -> Archive | None:
        data = host.files.read_optional(ARCHIVE)
        return None if data is None else read_archive(data)
