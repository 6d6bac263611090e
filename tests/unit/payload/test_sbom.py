"""The bill of materials: valid SPDX, the same bytes for the same input, and nothing left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from flox_node.payload import open_payload
from flox_node.payload.build import Recipe, build
from flox_node.payload.sbom import go_version, sbom
from tests.unit.payload import samples

BASE = "docker.io/library/python:3.13-slim@sha256:" + "ab" * 32


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    for name, version in (("a.thing", "1.2"), ("Other_Thing", "3")):
        folder = tmp_path / f"site-packages/{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nIts text.\n")
    return tmp_path / "site-packages"


@pytest.fixture
def document(recipe: Recipe, tmp_path: Path, site_packages: Path) -> bytes:
    recipe.shim.write_bytes(b"\x7fELF\xff Go buildinf:\x08\x02" + bytes(16) + b"\x08go1.26.8\x00more")
    build(recipe, tmp_path / "payload")
    return sbom(open_payload(tmp_path / "payload"), site_packages=[site_packages], base_image=BASE, created=86400)


def test_it_is_valid(document: bytes, tmp_path: Path) -> None:
    (tmp_path / "sbom.spdx.json").write_bytes(document)
    assert validate_full_spdx_document(parse_file(str(tmp_path / "sbom.spdx.json"))) == []


def test_it_names_store_paths_distributions_the_shim_its_go_and_the_base(document: bytes) -> None:
    packages = {
        (package["name"], package.get("versionInfo", "")): package for package in json.loads(document)["packages"]
    }
    assert set(packages) == {
        *(("libc", "2"), ("tool", "1.0"), ("lone", "")),
        *(("A.Thing", "1.2"), ("Other_Thing", "3")),
        *(("flox-node", "0.1.0"), ("flox-runtime", "0.1.0"), ("stdlib", "1.26.8")),
        (BASE.partition("@")[0], ""),
    }
    assert packages[BASE.partition("@")[0], ""]["checksums"][0]["checksumValue"] == "ab" * 32
    assert packages["Other_Thing", "3"]["externalRefs"][0]["referenceLocator"] == "pkg:pypi/other-thing@3"


def test_a_distribution_in_two_places_is_one_package(document: bytes) -> None:
    found: dict[str, Any] = json.loads(document)
    holders = {
        relation["spdxElementId"]
        for relation in found["relationships"]
        if relation["relatedSpdxElement"] == "SPDXRef-Python-a-thing-1.2"
    }
    assert holders == {"SPDXRef-Image", f"SPDXRef-Store-{'2' * 32}"}


def test_the_same_input_gives_the_same_bytes_from_folder_and_archive(
    recipe: Recipe, document: bytes, tmp_path: Path, site_packages: Path
) -> None:
    build(recipe, tmp_path / "other.tar.zst")
    again = sbom(
        open_payload(tmp_path / "other.tar.zst"), site_packages=[site_packages], base_image=BASE, created=86400
    )
    assert again == document
    assert json.loads(document)["creationInfo"]["created"] == "1970-01-02T00:00:00Z"


def test_another_content_is_another_document(document: bytes, tmp_path: Path) -> None:
    build(samples.make_recipe(tmp_path / "less"), tmp_path / "without")
    other = sbom(open_payload(tmp_path / "without"))
    namespaces = {json.loads(one)["documentNamespace"] for one in (document, other)}
    assert len(namespaces) == 2


def test_a_program_that_is_not_gos_has_no_go_version() -> None:
    assert go_version(b"\x7fELF something else") is None
    assert go_version(b"\xff Go buildinf:\x08\x00" + bytes(40)) is None, "the form before Go 1.18"
