"""The image that Flox pods name, out of the payload: no registry is needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Before, Missing, Progress, register
from flox_node.actions.paths import CURRENT
from flox_node.containerd.live.images import Archive, ImageStore, read_archive
from flox_node.errors import FloxNodeError
from flox_node.host import Host
from flox_node.payload.image import REFERENCE
from flox_node.payload.manifest import EMPTY_IMAGE

ARCHIVE = f"{CURRENT}/{EMPTY_IMAGE}"


@register
@dataclass(frozen=True)
class ImportImage:
    """Have the image in the containerd behind `socket`, pinned, so that the kubelet never collects it."""

    kind: ClassVar[str] = "import-image"

    socket: str

    @property
    def key(self) -> str:
        """See Action."""
        return self.kind

    def describe(self) -> str:
        """See Action."""
        return f"import the image {REFERENCE} into containerd"

    def inspect(self, host: Host) -> Missing | None:
        """See Action."""
        archive = self._archive(host)
        if archive is None:
            return Missing(f"{ARCHIVE} is not there")
        if self._store(host).digest_of(REFERENCE, pinned=True) != archive.digest:
            return Missing(f"{REFERENCE} is not in containerd, or not pinned")
        return None

    def preview(self, host: Host) -> str:
        """See Action."""
        return ""

    def capture(self, host: Host) -> Before | None:
        """See Action."""
        return None if self._store(host).digest_of(REFERENCE) is not None else {"created": True}

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action."""
        archive = self._archive(host)
        if archive is not None:
            self._store(host).put(archive)

    def revert(self, host: Host, before: Before, *, purge: bool) -> None:
        """Remove the image if an install brought it. A containerd that is down keeps it: it costs a kilobyte."""
        if not before.get("created"):
            return
        try:
            self._store(host).remove(REFERENCE)
        except FloxNodeError:
            if host.processes.socket_owner(self.socket) is not None:
                raise

    def _store(self, host: Host) -> ImageStore:
        return ImageStore(host.files.real(self.socket))

    def _archive(self, host: Host) -> Archive | None:
        data = host.files.read_optional(ARCHIVE)
        return None if data is None else read_archive(data)
