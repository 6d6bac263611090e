"""The product's image, built by its Dockerfile, under a real containerd with a read-only root file system."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest
import zstandard
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from flox_node import __version__
from flox_node.payload import manifest as manifests
from tests.bed import golang, image, payload, releases
from tests.bed.containerd import Containerd
from tests.conftest import FULL

EVERY_RELEASE = (*releases.DEFAULT, *(("1.6", *releases.NEWER) if FULL else ()))
SBOM = "usr/share/doc/flox-node/sbom.spdx.json"
UNPRIVILEGED = 65532


class Built:
    """The image's archive, read without any container engine."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        with tarfile.open(archive) as tar:
            [described] = self._json(tar, "index.json")["manifests"]
            self._manifest = self._json(tar, self._blob(described["digest"]))
            self.config: dict[str, Any] = self._json(tar, self._blob(self._manifest["config"]["digest"]))

    def layers(self) -> Iterator[IO[bytes]]:
        """Each layer as a tar, the base image's first."""
        for described in self._manifest["layers"]:
            with tarfile.open(self.archive) as tar:
                blob = tar.extractfile(self._blob(described["digest"]))
                assert blob is not None
                with zstandard.ZstdDecompressor().stream_reader(blob) as layer:
                    yield io.BytesIO(layer.read())

    def files(self) -> dict[str, bytes]:
        """The regular files of all layers by path."""
        found = {}
        for layer in self.layers():
            with tarfile.open(fileobj=layer) as tar:
                for member in tar:
                    if member.isfile():
                        data = tar.extractfile(member)
                        assert data is not None
                        found[member.name] = data.read()
        return found

    @staticmethod
    def _json(tar: tarfile.TarFile, name: str) -> Any:
        file = tar.extractfile(name)
        assert file is not None
        return json.load(file)

    @staticmethod
    def _blob(digest: str) -> str:
        return f"blobs/{digest.replace(':', '/')}"


@pytest.fixture(scope="module")
def built(bed: Path) -> Built:
    return Built(image.archive())


@pytest.fixture(scope="module")
def files(built: Built) -> dict[str, bytes]:
    return built.files()


def test_it_says_what_it_is_and_runs_the_agent_as_whoever_the_pod_says(built: Built) -> None:
    config = built.config["config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert (labels["title"], labels["version"], labels["licenses"]) == ("flox-node", __version__, "Apache-2.0")
    assert config["Entrypoint"] == ["flox-node-agent"]
    assert not config.get("Cmd")
    assert not config.get("User")
    assert (built.config["os"], built.config["architecture"]) == ("linux", "amd64")


@pytest.mark.parametrize("release", EVERY_RELEASE)
def test_it_runs_with_a_read_only_root(containerd: Callable[..., Containerd], release: str, built: Built) -> None:
    daemon = containerd(release).start()
    daemon.load_images()
    daemon.load(built.archive)
    sandbox = daemon.cri.run_sandbox("runc")
    for user in (0, UNPRIVILEGED):
        idle = ["python3", "-c", "import time; time.sleep(1000)"]
        options = {"image": image.REFERENCE, "name": f"user-{user}", "user": user, "read_only": True}
        container = daemon.cri.run_container(sandbox, idle, **options)

        assert daemon.cri.exec(container, "flox-node", "--version").stdout == f"{__version__}\n"

        entered = daemon.cri.exec(container, *built.config["config"]["Entrypoint"])
        assert (entered.exit_code, json.loads(entered.stdout)["error"]) == (2, "usage"), "the agent, told nothing"

        touched = daemon.cri.exec(container, "python3", "-c", "open('/payload/touched', 'w')")
        assert "Read-only file system" in touched.stderr

        code = "import flox_node.agent.node, flox_node.agent.reporter, flox_node.cli, prometheus_client, rich.table"
        told = daemon.cri.exec(container, "python3", "-v", "-c", code)
        assert told.exit_code == 0
        loaded = [line for line in told.stderr.splitlines() if line.startswith("# code object from ")]
        assert [line for line in loaded if not line.endswith(".pyc'")] == []
        assert len(loaded) > 100

    whole = daemon.cri.exec(container, "flox-node", "payload", "verify", "/payload", timeout=60)
    assert whole.stdout.startswith(f"whole: payload {payload.manifest()['id']}"), whole.stderr


def test_its_payload_is_the_one_that_the_tests_install(files: dict[str, bytes]) -> None:
    assert files["payload/manifest.json"] == (payload.folder() / "manifest.json").read_bytes()


def test_its_bill_of_materials_is_valid_and_names_all_that_is_in_it(
    files: dict[str, bytes], built: Built, tmp_path: Path
) -> None:
    (tmp_path / "sbom.spdx.json").write_bytes(files[SBOM])
    document = parse_file(str(tmp_path / "sbom.spdx.json"))
    assert validate_full_spdx_document(document) == []

    named = {(package.name, package.version) for package in document.packages}
    ours = [name for name in files if name.startswith(("opt/", "payload/")) and name.endswith(".dist-info/METADATA")]
    distributions = {name.split("/")[-2].removesuffix(".dist-info") for name in ours}
    assert distributions <= {f"{name.lower().replace('-', '_')}-{version}" for name, version in named}
    assert any(name.startswith("prometheus_client-") for name in distributions)
    assert ("stdlib", golang.version().removeprefix("go")) in named
    assert built.config["config"]["Labels"]["org.opencontainers.image.base.name"] in {name for name, _ in named}
    hashes = {checksum.value for package in document.packages for checksum in package.checksums}
    stored = manifests.parse(files["payload/manifest.json"]).store_paths
    assert {path.nar_hash.removeprefix("sha256:") for path in stored} <= hashes


def test_nothing_of_how_the_package_index_was_reached_is_in_it(built: Built) -> None:
    """The secrets of a build of the tests hold a text for this; the machine's own settings are looked for as well."""
    settings = image.pip_settings()
    addresses = " ".join(settings.get(name, "") for name in ("index-url", "extra-index-url", "proxy")).split()
    hosts = {urlsplit(address).hostname or "" for address in addresses}
    secrets = {
        text.encode() for text in {image.SECRET, *addresses, *hosts, *settings.get("trusted-host", "").split()} - {""}
    }
    everything = [layer.read() for layer in built.layers()] + [json.dumps(built.config).encode()]
    for number, data in enumerate(everything):
        assert [secret for secret in secrets if secret in data] == [], f"layer {number}"
    assert b"pip.conf" not in everything[-1]


def test_its_size_is_told(built: Built, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    unpacked = sum(map(len, files.values()))
    packed = built.archive.stat().st_size
    with capsys.disabled():
        print(f"\nimage: {packed / (1 << 20):.0f} MiB packed, {unpacked / (1 << 20):.0f} MiB unpacked")
    assert unpacked < 400 << 20
