"""Archives that somebody made to hurt: what leaves the payload's tree is refused, nothing is written outside."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from flox_node.errors import CorruptError
from flox_node.host.trees import Entry, TreeWriter
from flox_node.payload import manifest as manifests
from flox_node.payload import open_payload
from flox_node.payload.archive import _DigestingWriter, compression_of
from flox_node.payload.manifest import PayloadFile, StorePath
from flox_node.payload.nar import nar_of
from flox_node.payload.source import Item
from flox_node.payload.verify import receive, verify
from tests.unit.payload import samples

Members = list[tuple[tarfile.TarInfo, bytes]]
STORE_PATH = f"store/{samples.LONE.removeprefix('/nix/store/')}"


def _tar(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", mode: int = 0o444, link: str = "") -> Members:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, len(data), link, 1
    return [(info, data)]


HOSTILE: dict[str, Members] = {
    "a path that climbs out": _tar("store/../../evil", data=b"x"),
    "a path in a store path that climbs out": _tar(f"{STORE_PATH}/../../../evil", data=b"x"),
    "an absolute path": _tar("/evil", data=b"x"),
    "a path with a dot": _tar(f"{STORE_PATH}/./x", data=b"x"),
    "a path with an empty name": _tar(f"{STORE_PATH}//x", data=b"x"),
    "a character device": _tar(f"{STORE_PATH}/null", tarfile.CHRTYPE),
    "a block device": _tar(f"{STORE_PATH}/disk", tarfile.BLKTYPE),
    "a pipe": _tar(f"{STORE_PATH}/pipe", tarfile.FIFOTYPE),
    "a hard link": _tar(f"{STORE_PATH}/hard", tarfile.LNKTYPE, link="../../../../etc/passwd"),
    "a relative link out of the store": _tar(f"{STORE_PATH}/link", tarfile.SYMTYPE, mode=0o777, link="../../../../etc"),
    "a file twice": [*_tar(f"{STORE_PATH}/a", data=b"1"), *_tar(f"{STORE_PATH}/a", data=b"2")],
    "files out of order": [*_tar(f"{STORE_PATH}/b"), *_tar(f"{STORE_PATH}/a")],
    "a folder twice": [*_tar(f"{STORE_PATH}/d", tarfile.DIRTYPE, mode=0o555)] * 2,
    "a folder again after its content": [
        *_tar(f"{STORE_PATH}/d", tarfile.DIRTYPE, mode=0o555),
        *_tar(f"{STORE_PATH}/d/x"),
        *_tar(f"{STORE_PATH}/d", tarfile.DIRTYPE, mode=0o555),
    ],
    "a file below a link": [
        *_tar(f"{STORE_PATH}/d", tarfile.SYMTYPE, mode=0o777, link="/etc"),
        *_tar(f"{STORE_PATH}/d/evil", data=b"x"),
    ],
    "a file without its folder": _tar(f"{STORE_PATH}/d/x", data=b"x"),
    "a world-writable file": _tar(f"{STORE_PATH}/x", mode=0o666),
    "a set-user-id program": _tar(f"{STORE_PATH}/x", mode=0o4555),
    "a name of ten megabytes": _tar(f"{STORE_PATH}/{'x' * 10_000_000}"),
    "more than the manifest says": _tar(f"{STORE_PATH}/x", data=bytes(5_000_000)),
    "another store path": _tar(f"store/{'7' * 32}-evil", tarfile.DIRTYPE, mode=0o555),
    "a second manifest": _tar("manifest.json", data=b"{}"),
}


@pytest.mark.parametrize("suffix", [".tar.zst", ".tar.gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_written_outside(tmp_path: Path, name: str, suffix: str) -> None:
    archive = tmp_path / f"evil{suffix}"
    _write(archive, HOSTILE[name])
    target = tmp_path / "outer/inner/target"
    target.mkdir(parents=True)

    def receiver(item: Item) -> TreeWriter:
        return TreeWriter(target / (item.name if isinstance(item, StorePath) else item.path.replace("/", "-")))

    payload = open_payload(archive)
    with pytest.raises(CorruptError):
        receive(payload, receiver)
    assert sorted(os.listdir(tmp_path)) == [archive.name, "outer"]
    assert os.listdir(tmp_path / "outer") == ["inner"]
    assert os.listdir(tmp_path / "outer/inner") == ["target"]


def test_the_archive_of_these_tests_is_whole_without_the_hostile_member(tmp_path: Path) -> None:
    _write(tmp_path / "good.tar.zst", [])
    verify(open_payload(tmp_path / "good.tar.zst"))


def test_a_manifest_that_names_a_file_outside_is_refused() -> None:
    manifest, _ = _manifest()
    for path in ("../evil", "/evil", "bin/../../evil", "store/x", "manifest.json", "", "bin//x", "bin/."):
        with pytest.raises(CorruptError):
            _seal(manifest, files=(*manifest.files, PayloadFile(path, "0" * 64, 0, 0o444)))


def test_a_manifest_that_contradicts_itself_is_refused() -> None:
    manifest, _ = _manifest()
    [lone] = manifest.store_paths
    changes: list[Callable[[], manifests.Manifest]] = [
        lambda: _seal(manifest, store_paths=(lone, lone)),
        lambda: _seal(manifest, store_paths=(replace(lone, references=(samples.TOOL,)),)),
        lambda: _seal(manifest, store_paths=(replace(lone, path="/nix/store/../evil"),)),
        lambda: _seal(manifest, store_paths=(replace(lone, nar_size=-1),)),
        lambda: _seal(manifest, entry_points={"tool": f"{samples.TOOL}/bin/tool"}),
        lambda: _seal(manifest, entry_points={"tool": f"{samples.LONE}/../../../bin/sh"}),
        lambda: _seal(manifest, entry_points={"../tool": f"{samples.LONE}/bin/tool"}),
        lambda: _seal(manifest, entry_points={"flox-runtime": f"{samples.LONE}/bin/tool"}),
        lambda: _seal(manifest, files=manifest.files[1:]),
        lambda: _seal(manifest, files=(*manifest.files, manifest.files[-1])),
    ]
    for change in changes:
        with pytest.raises(CorruptError):
            change()


def _manifest() -> tuple[manifests.Manifest, dict[str, bytes]]:
    """A payload with one store path, an empty folder, so that hostile members can be put into it."""
    files = {"bin/flox-runtime": b"shim", "images/flox-empty.tar": b"image", "registration": b"registration"}
    described = [PayloadFile(name, hashlib.sha256(data).hexdigest(), len(data), 0o444) for name, data in files.items()]
    empty = nar_of([Entry((), "directory", 0o555)])
    lone = StorePath(samples.LONE, empty.nar_hash, empty.nar_size, ())
    manifest = manifests.seal(
        version="0.1.0", system="x86_64-linux", entry_points={}, store_paths=[lone], files=described
    )
    return manifest, files


def _seal(manifest: manifests.Manifest, **change: object) -> manifests.Manifest:
    changed = replace(manifest, **change)  # type: ignore[arg-type]
    return manifests.seal(
        version=changed.version,
        system=changed.system,
        entry_points=changed.entry_points,
        store_paths=changed.store_paths,
        files=changed.files,
    )


def _members() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    manifest, files = _manifest()
    yield from _tar("manifest.json", data=manifests.dump(manifest))
    for folder, name in (("bin", "flox-runtime"), ("images", "flox-empty.tar")):
        yield from _tar(folder, tarfile.DIRTYPE, mode=0o755)
        yield from _tar(f"{folder}/{name}", data=files[f"{folder}/{name}"])
    yield from _tar("registration", data=files["registration"])
    yield from _tar("store", tarfile.DIRTYPE, mode=0o755)
    yield from _tar(STORE_PATH, tarfile.DIRTYPE, mode=0o555)


def _write(archive: Path, more: Members) -> None:
    """An archive with a true digest at its end: whoever makes a hostile one can make that too."""
    compression = compression_of(archive)
    assert compression is not None
    with archive.open("wb") as file:
        digesting = _DigestingWriter(file)
        with (
            compression.writer(cast("BinaryIO", digesting)) as compressed,
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for info, data in [*_members(), *more]:
                tar.addfile(info, io.BytesIO(data))
        file.write(compression.trailer(digesting.sha256.digest()))
