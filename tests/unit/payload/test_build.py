import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import zstandard

from flox_node.errors import CorruptError, RefusedError, UsageError
from flox_node.host.trees import walk
from flox_node.payload import manifest as manifests
from flox_node.payload import open_payload
from flox_node.payload.archive import write_archive
from flox_node.payload.build import Recipe, build, bundled_shim, read_registration
from flox_node.payload.image import empty_image
from flox_node.payload.nar import nar_of
from flox_node.payload.verify import verify
from tests.unit.payload import samples

SCHEMA = Path(manifests.__file__).parents[1] / "state/schemas/manifest.schema.json"


def test_the_same_store_gives_the_same_bytes_whenever_and_wherever_it_is_built(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        recipe = samples.with_lone(samples.make_recipe(tmp_path / name / "deeper"))
        for suffix in (".tar.zst", ".tar.gz", ""):
            build(recipe, tmp_path / name / f"payload{suffix}")
        os.utime(tmp_path / name / "deeper/shim", (5, 5))
        write_archive(tmp_path / name / "payload", tmp_path / name / "packed-later.tar.zst")
        packed = [(tmp_path / name / file).read_bytes() for file in ("payload.tar.zst", "packed-later.tar.zst")]
        assert packed[0] == packed[1]
        contents.append((packed[0], (tmp_path / name / "payload.tar.gz").read_bytes()))
    assert contents[0] == contents[1]


def test_a_payload_holds_the_closure_of_its_entry_points_and_nothing_else(tmp_path: Path) -> None:
    manifest = build(samples.make_recipe(tmp_path / "store"), tmp_path / "payload")
    assert [path.path for path in manifest.store_paths] == [samples.LIBC, samples.TOOL]
    assert sorted(os.listdir(tmp_path / "payload/store")) == [path.name for path in manifest.store_paths]
    assert manifest.roots() == {"nix-store": samples.TOOL, "tool": samples.TOOL}


def test_a_path_that_no_entry_point_needs_gets_a_root_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    manifest = build(recipe, tmp_path / "payload")
    assert manifest.roots()[samples.LONE.removeprefix("/nix/store/")] == samples.LONE


def test_the_manifest_is_what_its_schema_says(folder: Path) -> None:
    jsonschema.validate(json.loads((folder / "manifest.json").read_text()), json.loads(SCHEMA.read_text()))


def test_inspecting_reads_the_same_manifest_from_folder_and_archive(folder: Path, archive: Path) -> None:
    assert open_payload(folder).manifest == open_payload(archive).manifest
    assert verify(open_payload(folder)) == verify(open_payload(archive))


def test_an_archive_is_one_that_tar_unpacks_to_the_folder(folder: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open(archive, "rb") as file:  # by the libraries, since a plain machine's tar has no zstd to call
        unpacked = zstandard.ZstdDecompressor() if archive.suffix == ".zst" else None
        stream = unpacked.stream_reader(file, read_across_frames=True) if unpacked else gzip.GzipFile(fileobj=file)
        with stream:
            subprocess.run(["tar", "-xf", "-", "-C", tmp_path / "out"], input=stream.read(), check=True)
    assert verify(open_payload(tmp_path / "out")) == open_payload(folder).manifest
    assert nar_of(walk(tmp_path / "out")).nar_hash == nar_of(walk(folder)).nar_hash


def test_the_registration_is_read_back_as_it_was_written(folder: Path) -> None:
    manifest = open_payload(folder).manifest
    known = read_registration((folder / "registration").read_text())
    assert {path: (valid.nar_hash, valid.nar_size, valid.references) for path, valid in known.items()} == {
        path.path: (path.nar_hash, path.nar_size, path.references) for path in manifest.store_paths
    }


def test_the_empty_image_is_an_oci_archive_without_a_layer() -> None:
    with tarfile.open(fileobj=io.BytesIO(empty_image("x86_64-linux"))) as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    [described] = json.loads(files["index.json"])["manifests"]
    assert described["annotations"]["io.containerd.image.name"] == "docker.io/flox/empty:1.0.0"
    image = json.loads(files["blobs/" + described["digest"].replace(":", "/")])
    assert image["layers"] == []
    assert json.loads(files["blobs/" + image["config"]["digest"].replace(":", "/")])["rootfs"]["diff_ids"] == []
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize(("system", "machine"), [("x86_64-linux", 0x3E), ("aarch64-linux", 0xB7)])
def test_the_shim_that_flox_node_brings_is_for_the_nodes_processor(system: str, machine: int) -> None:
    assert bundled_shim(system).read_bytes()[18] == machine, "the machine field of the ELF header"


def test_a_system_that_no_node_has_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing for riscv64-linux"):
        bundled_shim("riscv64-linux")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entry_points": {"tool": f"/nix/store/{'9' * 32}-absent/bin/tool"}}, "absent is not a valid path"),
        ({"entry_points": {"tool": f"{samples.TOOL}/bin/absent"}}, "is not a program"),
        ({"shim": Path("/nonexistent/shim")}, "no shim at /nonexistent/shim"),
        ({"registration": None}, "no Nix database below"),
        ({"wheels": Path("/nonexistent"), "python": f"{samples.TOOL}/bin/tool"}, "holds 0 wheels of flox-node"),
        ({"wheels": Path("/nonexistent"), "python": f"{samples.TOOL}/bin/absent"}, "is not a program"),
    ],
)
def test_a_recipe_that_names_what_is_not_there_is_refused(
    recipe: Recipe, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        build(replace(recipe, **change), tmp_path / "payload")  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_a_damaged_store_gives_no_payload(recipe: Recipe, tmp_path: Path) -> None:
    file = recipe.store_root / samples.LIBC.lstrip("/") / "lib/libc.so"
    file.chmod(0o644)
    file.write_bytes(b"other")
    with pytest.raises(CorruptError, match=r"libc-2 .* is damaged"):
        build(recipe, tmp_path / "payload")
    assert not (tmp_path / "payload").exists()


def test_building_over_a_folder_that_is_no_payload_leaves_it_alone(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no payload"):
        build(recipe, tmp_path / "home")
    assert (tmp_path / "home/thesis.txt").read_text() == "years of work"


def test_building_over_a_payload_replaces_it(recipe: Recipe, folder: Path) -> None:
    manifest = build(replace(recipe, extra_paths=()), folder)
    assert verify(open_payload(folder)) == manifest


def test_a_manifest_of_a_later_kind_is_refused_and_not_called_damaged(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    with pytest.raises(RefusedError, match="version 2"):
        manifests.parse(json.dumps(document | {"schema_version": 2}).encode())
