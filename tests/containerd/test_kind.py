"""What `flox-node kind` hands to kind, against kind itself, its nodes' own configurations and real containerds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flox_node.kind.cluster_file import MARK, OURS, Baked, Shape, cluster_file
from tests.bed import cache, image, images, kind, registry
from tests.bed.buildah import Buildah
from tests.bed.containerd import Containerd
from tests.conftest import FULL

SHIM = "/opt/flox-node/bin/flox-runtime"
BAKED = {release: Baked("/srv/nix", "/srv/prefix", (0, int(release.split(".")[1]))) for release in kind.RELEASES}
DAEMONS = ("1.7", "2.1", "2.3", "2.4") if FULL else ("2.1", "2.4")


def _file(folder: Path, baked: Baked | None = None, **shape: int) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(cluster_file(Shape(**shape), baked))  # type: ignore[arg-type]
    return file


def _node(containerd: Callable[..., Containerd], release: str, config: str) -> Containerd:
    daemon = containerd(release, config=config)
    daemon.write("etc/containerd/cri-base.json", daemon.run(["ctr", "oci", "spec"]).stdout)
    return daemon


def test_kind_reads_our_cluster_file_and_has_nothing_to_add_to_what_it_says(bed: object, tmp_path: Path) -> None:
    loaded = kind.load(_file(tmp_path, nodes=3, port=9090))
    assert loaded["Name"] == "flox"
    nodes = loaded["Nodes"]
    assert isinstance(nodes, list)
    assert [node["Role"] for node in nodes] == ["control-plane", "worker", "worker"]
    assert all(node["Labels"] == {MARK: OURS} for node in nodes)
    (port,) = nodes[0]["ExtraPortMappings"]
    assert (port["ContainerPort"], port["HostPort"], port["ListenAddress"]) == (30080, 9090, "127.0.0.1")
    assert all(node["Image"] for node in nodes), "kind's own image of its release"


@pytest.mark.parametrize("of", kind.RELEASES)
def test_kind_s_own_code_puts_the_handler_beside_what_its_nodes_have(of: str, bed: object, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(kind.node_config(of))
    # The old form has to be right for the newest code, too: its one patch names no version.
    for form in (BAKED["0.31.0"], BAKED["0.33.0"]):
        before = tomllib.loads(kind.node_config(of))
        after = tomllib.loads(kind.patched(_file(tmp_path, form), config))
        assert after["plugins"]["io.containerd.grpc.v1.cri"].pop("registry") == {
            "config_path": "/etc/containerd/certs.d"
        }
        runtimes = after["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
        assert runtimes.pop("flox")["options"] == {"BinaryName": SHIM, "SystemdCgroup": True}
        assert after == before, "nothing else changed"


@pytest.mark.parametrize("release", DAEMONS)
def test_a_node_of_kind_with_our_patches_serves_the_handler(
    release: str, containerd: Callable[..., Containerd], tmp_path: Path
) -> None:
    newest = kind.RELEASES[-1]
    config = tmp_path / "config.toml"
    config.write_text(kind.node_config(newest))
    daemon = _node(containerd, release, kind.patched(_file(tmp_path, BAKED[newest]), config))
    # containerd asks a handler's program what it can do.
    daemon.write("opt/flox-node/bin/flox-runtime", '#!/bin/sh\nexec runc "$@"\n')
    daemon.run(["chmod", "755", SHIM])
    daemon.start()
    assert daemon.has_cri()
    handlers = daemon.cri.handlers()
    assert {"runc", "test-handler", "flox"} <= set(handlers)
    assert handlers["flox"]["options"] == {"BinaryName": SHIM, "SystemdCgroup": True}


DOCS = Path(__file__).parents[2] / "docs/kind.md"
ADMIN = """\
apiVersion: v1
kind: Config
clusters:
- {name: flox, cluster: {server: "https://127.0.0.1:6443"}}
users:
- {name: kubernetes-admin, user: {}}
contexts:
- {name: admin, context: {cluster: flox, user: kubernetes-admin}}
current-context: admin
"""


@pytest.mark.parametrize("release", kind.DEBIAN_SUITES if FULL else ("0.33",))
def test_kind_itself_makes_the_cluster_of_our_file_as_far_as_no_container_is_needed(
    release: str, bed: object, tmp_path: Path
) -> None:
    """Every step of it, with an engine that only takes down what it is told."""
    engine, kubeconfig = tmp_path / "engine", tmp_path / "kubeconfig"
    engine.mkdir()
    (engine / "admin.conf").write_text(ADMIN)
    (engine / "config.toml").write_text(kind.node_config(kind.RELEASES[-1]))
    kind.put_engine(tmp_path)
    environment = {
        **os.environ,
        "ENGINE_DOUBLE": str(engine),
        "KUBECONFIG": str(kubeconfig),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(kind.program(release)), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + (engine / "calls.jsonl").read_text()
        return done

    assert f"v{release}." in run("version").stdout or release == "0.33", "sid goes on"
    made = run("create", "cluster", "--name=flox", f"--config={_file(tmp_path, nodes=2, port=9090)}", "--wait=120s")
    assert "kind-flox" in made.stderr
    assert yaml.safe_load(kubeconfig.read_text())["current-context"] == "kind-flox"
    containers = json.loads((engine / "containers.json").read_text())
    assert sorted(containers) == ["flox-control-plane", "flox-worker"]
    assert "127.0.0.1:9090:30080/TCP" in containers["flox-control-plane"]["ports"]
    for node in containers.values():
        assert f"{MARK}={OURS}" in node["/kind/kubeadm.conf"], "which carries our mark to every kubelet"
        config = tomllib.loads(node["/etc/containerd/config.toml"])
        found = config["plugins"]["io.containerd.grpc.v1.cri"]["registry"]
        assert found == {"config_path": "/etc/containerd/certs.d"}
    assert set(run("get", "nodes", "--name=flox").stdout.split()) == set(containers)
    run("delete", "cluster", "--name=flox")
    assert run("get", "clusters").stdout == ""
    assert (kubeconfig.read_text().count("kind-flox"), json.loads((engine / "containers.json").read_text())) == (0, {})


INDEX = "application/vnd.oci.image.index.v1+json"
IMPORTS = ("--all-platforms", "--platform=linux/amd64", "")


@pytest.mark.skipif(not FULL, reason="a minute a release: in `make test-full`")
@pytest.mark.parametrize("release", ["1.7", "2.1", "2.4"])
def test_the_product_s_archive_is_imported_as_kind_does_and_as_we_do(
    release: str, containerd: Callable[..., Containerd]
) -> None:
    daemon = containerd(release)
    daemon.start()
    daemon.load_images()
    for words in IMPORTS:
        _import(daemon, image.archive(), words)
        daemon.wait_for_images(image.REFERENCE)
        daemon.ctr("images", "rm", "--sync", image.REFERENCE)
    _import(daemon, image.archive(), IMPORTS[1])
    daemon.wait_for_images(image.REFERENCE)
    container = daemon.cri.run_container(
        daemon.cri.run_sandbox("runc"), ["flox-node", "--version"], image=image.REFERENCE
    )
    assert daemon.cri.wait_exited(container).exit_code == 0, daemon.cri.logs(container)


@pytest.mark.parametrize("release", ("1.7", "2.1", "2.4") if FULL else ("2.1",))
def test_an_archive_that_names_what_it_does_not_hold_is_imported_by_us_alone(
    release: str, containerd: Callable[..., Containerd], tmp_path: Path
) -> None:
    """As Docker 29 saves an image whose other platforms and attestations were never pulled."""
    daemon = containerd(release)
    daemon.start()
    archive, name = tmp_path / "image.tar", "flox.test/attested:1"
    images.write_archive(tmp_path / "one.tar", name, [images.busybox_layer()], {"Env": [images.PATH]})
    _name_absent_platforms(tmp_path / "one.tar", archive, name)
    with pytest.raises(RuntimeError, match="not found"):
        _import(daemon, archive, "--all-platforms")
    _import(daemon, archive, "--platform=linux/amd64")
    daemon.wait_for_images(name)


@pytest.mark.parametrize("release", ("2.1", "2.4") if FULL else ("2.1",))
def test_the_docs_have_a_node_of_kind_pull_from_a_registry_of_this_machine(
    release: str, containerd: Callable[..., Containerd], tmp_path: Path
) -> None:
    """The lines as they stand there, run by a shell, with kind itself; then the node's own containerd."""
    config = tmp_path / "config.toml"
    config.write_text(kind.node_config(kind.RELEASES[-1]))
    daemon = _node(containerd, release, kind.patched(_file(tmp_path), config))
    daemon.write("etc/hosts", "127.0.0.1 localhost flox-registry\n")
    daemon.start()
    daemon.serve(registry.command(tmp_path / "registry", 5000))
    pushed = tmp_path / "pushed.tar"
    images.write_archive(pushed, "flox.test/pushed:1", [images.busybox_layer()], {"Env": [images.PATH]})
    with tempfile.TemporaryDirectory(dir=cache.folder()) as folder:
        buildah = Buildah(Path(folder), ["nsenter", f"--net=/proc/{daemon.pid}/ns/net"])
        made = buildah("pull", "--quiet", f"oci-archive:{pushed}")
        buildah("push", "--quiet", "--tls-verify=false", "--retry=10", made, "docker://localhost:5000/pushed:1")

    engine, programs = tmp_path / "engine", tmp_path / "bin"
    for made_folder in (engine, programs):
        made_folder.mkdir()
    kind.put_engine(programs)
    (programs / "kind").symlink_to(kind.program("0.33"))
    node = {"labels": {"io.x-k8s.kind.cluster": "flox", "io.x-k8s.kind.role": "control-plane"}, "ports": []}
    (engine / "containers.json").write_text(json.dumps({"flox-control-plane": node}))
    (engine / "nodes.json").write_text(json.dumps({"flox-control-plane": {"pid": daemon.pid, "name": "node"}}))
    block = DOCS.read_text().partition("### A local registry")[2].partition("```sh\n")[2].partition("```")[0]
    environment = {**os.environ, "ENGINE_DOUBLE": str(engine), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-euc", block], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "flox-registry" in json.loads((engine / "containers.json").read_text())
    daemon.cri.pull("localhost:5005/pushed:1")
    assert "localhost:5005/pushed:1" in daemon.cri.images()


def _import(daemon: Containerd, archive: Path, *words: str) -> None:
    """As `ctr` is called on a node of kind, whose default snapshotter is overlayfs."""
    given = [word for word in words if word]
    daemon.ctr("images", "import", "--digests", *given, "--snapshotter=overlayfs", archive)


def _name_absent_platforms(archive: Path, into: Path, name: str) -> None:
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as members:
        for member in members:
            data = members.extractfile(member)
            assert data is not None
            files[member.name] = data.read()
    [entry] = json.loads(files["index.json"])["manifests"]
    held = {key: entry[key] for key in ("mediaType", "digest", "size", "platform")}
    others = [{"os": "linux", "architecture": "arm64"}, {"os": "unknown", "architecture": "unknown"}]
    absent = [
        {"mediaType": entry["mediaType"], "digest": f"sha256:{number:064}", "size": 500, "platform": platform}
        for number, platform in enumerate(others)
    ]
    absent[1]["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": entry["digest"],
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [held, *absent]}
    blob = json.dumps(index).encode()
    digest = hashlib.sha256(blob).hexdigest()
    outer = {"mediaType": INDEX, "digest": f"sha256:{digest}", "size": len(blob)}
    outer["annotations"] = {"io.containerd.image.name": name}
    files[f"blobs/sha256/{digest}"] = blob
    files["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [outer]}).encode()
    into.write_bytes(images.layer({path: (data, 0o644) for path, data in files.items()}))
