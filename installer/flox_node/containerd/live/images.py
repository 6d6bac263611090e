"""Images in a containerd, over its own API: the node may have no `ctr`, and k3s' is called otherwise.

An image is put there as `ctr images import` does: under a lease, so that a collection in the middle takes nothing away;
first the blobs, then the name. Field numbers are those of containerd's api/services/{content,images,leases}.
"""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flox_node.containerd.live.grpc import ProtocolError, as_bytes, as_map, as_text, call, field, fields, map_field
from flox_node.errors import CorruptError, OutsideError

_NAMESPACE = {"containerd-namespace": "k8s.io"}
PINNED = {"io.cri-containerd.pinned": "pinned"}
"""The label that keeps the kubelet from collecting an image (from containerd 1.7 on)."""
_TIMEOUT_S = 20.0
_COMMIT = 2
_LEASE_S = 600


@dataclass(frozen=True)
class Archive:
    """An OCI archive of one image: its name, its manifest's descriptor, all its blobs by digest."""

    name: str
    media_type: str
    digest: str
    size: int
    blobs: Mapping[str, bytes]

    @property
    def references(self) -> tuple[str, ...]:
        """The digests that the manifest names."""
        manifest = json.loads(self.blobs[self.digest])
        return tuple(item["digest"] for item in (manifest["config"], *manifest["layers"]))


def read_archive(data: bytes) -> Archive:
    """Read an OCI archive with one image.

    Raises:
        CorruptError: it is none.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = {item.name: _content(tar, item) for item in tar.getmembers() if item.isreg()}
        target: dict[str, Any] = json.loads(files["index.json"])["manifests"][0]
        prefix = "blobs/sha256/"
        blobs = {f"sha256:{name.removeprefix(prefix)}": blob for name, blob in files.items() if name.startswith(prefix)}
        name = target["annotations"]["io.containerd.image.name"]
        archive = Archive(name, target["mediaType"], target["digest"], target["size"], blobs)
        if not {archive.digest, *archive.references} <= blobs.keys():
            raise KeyError("a blob")
    except (tarfile.TarError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptError(f"The image archive of the payload is damaged: {error}.") from error
    return archive


class ImageStore:
    """The images of one containerd that its CRI sees. `socket_path` lies in our own namespace."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path

    def digest_of(self, name: str, *, pinned: bool = False) -> str | None:
        """The digest that an image name stands for; None where there is none (or where it is not pinned).

        Raises:
            OutsideError: containerd does not answer.
        """
        for number, value in fields(self._call("images.v1.Images/List", field(1, f"name=={name}"))):
            if number != 1:
                continue
            if pinned and not PINNED.items() <= as_map(as_bytes(value), 2).items():
                return None
            target = dict(fields(as_bytes(dict(fields(as_bytes(value)))[3])))
            return as_text(target[2])
        return None

    def put(self, archive: Archive) -> None:
        """Bring an image into the store, under its name and pinned; what the name stood for is replaced.

        Raises:
            OutsideError: containerd does not answer or refuses.
        """
        lease = f"flox-node-{uuid.uuid4().hex}"
        labels = {"containerd.io/gc.expire": _after(_LEASE_S)}
        self._call("leases.v1.Leases/Create", field(1, lease) + map_field(3, labels))
        try:
            children = {
                f"containerd.io/gc.ref.content.{number}": digest for number, digest in enumerate(archive.references)
            }
            for digest, blob in archive.blobs.items():
                self._put_blob(digest, blob, children if digest == archive.digest else {}, lease)
            target = field(1, archive.media_type) + field(2, archive.digest) + field(3, archive.size)
            image = field(1, archive.name) + map_field(2, PINNED) + field(3, target)
            known = self.digest_of(archive.name) is not None
            self._call(f"images.v1.Images/{'Update' if known else 'Create'}", field(1, image), lease)
        finally:
            self._call("leases.v1.Leases/Delete", field(1, lease))

    def remove(self, name: str) -> None:
        """Remove an image with every name that the CRI gave it; gone already is fine.

        Raises:
            OutsideError: the CRI does not answer.
        """
        self._invoke("/runtime.v1.ImageService/RemoveImage", field(1, field(1, name)), {})

    def _put_blob(self, digest: str, blob: bytes, labels: Mapping[str, str], lease: str) -> None:
        if self._has(digest):
            return
        message = (
            *(field(1, _COMMIT), field(2, f"flox-node-{digest}"), field(3, len(blob)), field(4, digest)),
            *(field(6, blob), map_field(7, labels)),
        )
        self._call("content.v1.Content/Write", b"".join(message), lease)

    def _has(self, digest: str) -> bool:
        try:
            self._call("content.v1.Content/Info", field(1, digest))
        except OutsideError:
            return False
        return True

    def _call(self, method: str, message: bytes, lease: str | None = None) -> bytes:
        held = {"containerd-lease": lease} if lease else {}
        return self._invoke(f"/containerd.services.{method}", message, {**_NAMESPACE, **held})

    def _invoke(self, method: str, message: bytes, metadata: Mapping[str, str]) -> bytes:
        try:
            return call(self._socket_path, method, message, timeout=_TIMEOUT_S, metadata=metadata)
        except (OSError, ProtocolError) as error:
            raise OutsideError(
                f"containerd does not carry out {method.rpartition('/')[2]} of an image: {error}.",
                remedy="See `journalctl -u containerd` on the node.",
            ) from error


def _content(tar: tarfile.TarFile, item: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(item)
    return file.read() if file else b""


def _after(seconds: int) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
