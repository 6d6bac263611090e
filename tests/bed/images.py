"""The container images of the tests, as OCI archives written with the standard library."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from tests.bed import cache
from tests.bed.config import SANDBOX_IMAGE

BUSYBOX = "flox.test/busybox:1"
APPLETS = "cat date echo env false head hostname id ls mkdir mount ps readlink sh sleep stat tail test touch true wc"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# A file of a layer: its bytes, the target of a symbolic link as str, or None for a folder; and its mode.
_ZSTD = b"\x28\xb5\x2f\xfd"
Entry = tuple[bytes | str | None, int]


def standard() -> list[Path]:
    """The archives every node of the bed holds: the sandbox image and busybox."""
    made = cache.artefact("images", {"applets": APPLETS, "revision": 1}, _build)
    return sorted(made.glob("*.tar"))


def names(archive: Path) -> list[str]:
    """The names of the images in an OCI archive."""
    with tarfile.open(archive) as members:
        index = members.extractfile("index.json")
        assert index is not None
        manifests = json.load(index)["manifests"]
    # buildah, as containerd takes it, writes the whole name where we write the tag.
    keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    return [next(filter(None, map(manifest["annotations"].get, keys))) for manifest in manifests]


def write_archive(path: Path, name: str, layers: Sequence[bytes], config: Mapping[str, object]) -> None:
    """Write the OCI archive of the image `name` with `layers` (uncompressed tars) and its configuration `config`."""
    blobs: dict[str, bytes] = {}

    def put(blob: bytes, media_type: str) -> dict[str, object]:
        blobs[_digest(blob)] = blob
        return _described(blob, media_type)

    platform = {"architecture": "amd64", "os": "linux"}
    image = {
        **platform,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(_json(image), "config.v1+json"),
        "layers": [put(gzip.compress(layer, mtime=0), "layer.v1.tar+gzip") for layer in layers],
    }
    entry = put(_json(manifest), "manifest.v1+json")
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**entry, "platform": platform, "annotations": annotations}],
    }
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    files |= {f"blobs/{digest.replace(':', '/')}": blob for digest, blob in blobs.items()}
    path.write_bytes(layer({file: (data, 0o644) for file, data in files.items()}))


def read_file(archive: Path, path: str) -> bytes:
    """A file of the image in an OCI archive, as its last layer with it has it."""
    for blob in reversed(_layers(_Archive(archive))):
        stream = io.BytesIO(zstandard.ZstdDecompressor().stream_reader(blob).read() if blob[:4] == _ZSTD else blob)
        with tarfile.open(fileobj=stream) as members:
            found = next((member for member in members if member.name.removeprefix("./") == path), None)
            data = members.extractfile(found) if found is not None else None
            if data is not None:
                return data.read()
    raise FileNotFoundError(f"{archive} has no {path}.")


def write_on_top(archive: Path, path: Path, name: str, top: bytes) -> None:
    """Write the OCI archive of the image `name`: that of `archive` with one layer (an uncompressed tar) more."""
    below = _Archive(archive)
    config, manifest = below.json(below.manifest["config"]["digest"]), below.manifest
    blobs = _layers(below)
    packed = gzip.compress(top, mtime=0)
    config["rootfs"]["diff_ids"].append(_digest(top))
    config.pop("history", None)
    manifest["layers"].append(_described(packed, "layer.v1.tar+gzip"))
    manifest["config"] = _described(_json(config), "config.v1+json")
    index = {
        "schemaVersion": 2,
        "manifests": [
            _described(_json(manifest), "manifest.v1+json") | {"annotations": {"io.containerd.image.name": name}}
        ],
    }
    blobs += [packed, _json(config), _json(manifest)]
    files: dict[str, Entry] = {f"blobs/{_digest(blob).replace(':', '/')}": (blob, 0o644) for blob in blobs}
    files |= {"oci-layout": (_json({"imageLayoutVersion": "1.0.0"}), 0o644), "index.json": (_json(index), 0o644)}
    path.write_bytes(layer(files))


class _Archive:
    """An OCI archive of one image."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.manifest = self.json(json.loads(self._read("index.json"))["manifests"][0]["digest"])

    def blob(self, digest: str) -> bytes:
        return self._read(f"blobs/{digest.replace(':', '/')}")

    def json(self, digest: str) -> Any:
        return json.loads(self.blob(digest))

    def _read(self, name: str) -> bytes:
        with tarfile.open(self._path) as members:
            data = members.extractfile(name)
            assert data is not None
            return data.read()


def _layers(archive: _Archive) -> list[bytes]:
    return [archive.blob(entry["digest"]) for entry in archive.manifest["layers"]]


def _described(blob: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": _digest(blob), "size": len(blob)}


def layer(files: Mapping[str, Entry]) -> bytes:
    """An uncompressed tar of `files` by path, root-owned, with no times."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, (data, mode) in files.items():
            member = tarfile.TarInfo(path)
            member.mode = mode
            if data is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)
    return buffer.getvalue()


def busybox_layer() -> bytes:
    """A small userland: the machine's static busybox and its applets."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("No busybox on this machine; run `python -m tests.bed prepare`.")
    files: dict[str, Entry] = {"bin": (None, 0o755), "bin/busybox": (Path(busybox).read_bytes(), 0o755)}
    files |= {f"bin/{applet}": ("busybox", 0o777) for applet in APPLETS.split()}
    files |= {
        "etc": (None, 0o755),
        "etc/passwd": (b"root:x:0:0:root:/root:/bin/sh\n", 0o644),
        "etc/group": (b"root:x:0:\n", 0o644),
        "root": (None, 0o700),
        "tmp": (None, 0o1777),
    }
    return layer(files)


def _build(folder: Path) -> None:
    userland = busybox_layer()
    sandbox = {"Env": [PATH], "Entrypoint": ["/bin/busybox", "sleep", "2147483647"]}
    write_archive(folder / "pause.tar", SANDBOX_IMAGE, [userland], sandbox)
    write_archive(folder / "busybox.tar", BUSYBOX, [userland], {"Env": [PATH], "Cmd": ["sh"]})


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
