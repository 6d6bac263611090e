"""What `flox-node kind` hands to kind, against kind's own code, its nodes' own configurations and real containerds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flox_node.kind.cluster_file import MARK, OURS, Baked, Shape, cluster_file
from tests.bed import kind
from tests.bed.containerd import Containerd
from tests.conftest import FULL

SHIM = "/opt/flox-node/bin/flox-runtime"
BAKED = {release: Baked("/srv/nix", "/srv/prefix", (0, int(release.split(".")[1]))) for release in kind.RELEASES}
DAEMONS = ("1.7", "2.1", "2.3", "2.4") if FULL else ("2.1", "2.4")


def _file(folder: Path, baked: Baked | None = None, **shape: int) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(cluster_file(Shape(**shape), baked))  # type: ignore[arg-type]
    return file


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
    import tomllib

    config = tmp_path / "config.toml"
    config.write_text(kind.node_config(of))
    # The old form has to be right for the newest code, too: its one patch names no version.
    for form in (BAKED["0.31.0"], BAKED["0.33.0"]):
        before = tomllib.loads(kind.node_config(of))
        after = tomllib.loads(kind.patched(_file(tmp_path, form), config))
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
    daemon = containerd(release, config=kind.patched(_file(tmp_path, BAKED[newest]), config))
    daemon.write("etc/containerd/cri-base.json", daemon.run(["ctr", "oci", "spec"]).stdout)
    # containerd asks a handler's program what it can do.
    daemon.write("opt/flox-node/bin/flox-runtime", '#!/bin/sh\nexec runc "$@"\n')
    daemon.run(["chmod", "755", SHIM])
    daemon.start()
    assert daemon.has_cri()
    handlers = daemon.cri.handlers()
    assert {"runc", "test-handler", "flox"} <= set(handlers)
    assert handlers["flox"]["options"] == {"BinaryName": SHIM, "SystemdCgroup": True}
