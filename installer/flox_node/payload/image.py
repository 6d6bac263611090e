"""The image `flox/empty`: an OCI archive with no layer at all, so that no registry and no disk is needed for it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

from flox_node.errors import UsageError

REFERENCE = "docker.io/flox/empty:1.0.0"
_ARCHITECTURES = {"x86_64-linux": "amd64", "aarch64-linux": "arm64"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def architecture_of(system: str) -> str:
    """The OCI name of a Nix system's processor.

    Raises:
        UsageError: it is none that nodes can have.
    """
    if system not in _ARCHITECTURES:
        raise UsageError(f"There is nothing for {system}, only for {', '.join(_ARCHITECTURES)}.")
    return _ARCHITECTURES[system]


def empty_image(system: str) -> bytes:
    """The archive, as `ctr images import` reads it: the same bytes every time."""
    architecture = architecture_of(system)
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": [f"PATH={_PATH}"]},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
    )
    image = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [],
        }
    )
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    **_descriptor("application/vnd.oci.image.manifest.v1+json", image),
                    "platform": {"architecture": architecture, "os": "linux"},
                    "annotations": {
                        "io.containerd.image.name": REFERENCE,
                        "org.opencontainers.image.ref.name": REFERENCE.rpartition(":")[2],
                    },
                }
            ],
        }
    )
    blobs = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in (config, image)}
    return _tar({"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index, **blobs})


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": "sha256:" + hashlib.sha256(blob).hexdigest(), "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 1
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
