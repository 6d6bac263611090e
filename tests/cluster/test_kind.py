"""`flox-node kind` from nothing to a cluster that answers, and back.

The command, kind, kubectl, ctr, the nodes and what runs on them are real. Of the engine there is only what it is told
and answers: its containers are the nodes of the tests' cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from flox_node.kind.cluster_file import MARK
from tests.bed import image, kind
from tests.cluster import binaries
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.test_cluster import FETCH
from tests.conftest import FULL

PRODUCT = image.REFERENCE.rpartition("/")[2]
CONTAINERS = ("flox-control-plane", "flox-worker")

pytestmark = pytest.mark.skipif(not FULL, reason="a minute and a half: in `make test-full`")


class Laptop:
    """A machine with docker, kind and kubectl on its PATH, on which the nodes are once kind has made them."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self.engine, self.kubeconfig = folder / "engine", folder / "kubeconfig"
        programs = folder / "bin"
        for made in (self.engine, programs):
            made.mkdir()
        kind.put_engine(programs)
        (programs / "kind").symlink_to(kind.program("0.33"))
        (programs / "kubectl").symlink_to(binaries.path(cluster.kubernetes, "kubectl"))
        (self.engine / "admin.conf").write_text(cluster.control_plane.kubeconfig.read_text())
        (self.engine / "config.toml").write_text(kind.node_config(kind.RELEASES[-1]))
        (self.engine / "images.json").write_text(json.dumps({PRODUCT: str(image.archive())}))
        nodes = {
            name: {"pid": node.pid, "name": node.name} for name, node in zip(CONTAINERS, cluster.nodes, strict=True)
        }
        (self.engine / "nodes.json").write_text(json.dumps(nodes))
        self.environment = {
            **os.environ,
            "ENGINE_DOUBLE": str(self.engine),
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`flox-node kind ...`, where the cluster's addresses are reached."""
        command = self._cluster.command(sys.executable, "-m", "flox_node", "kind", *words)
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=400, check=False, cwd=self._folder
        )

    def calls(self, *wanted: str) -> list[list[str]]:
        """What the engine was told that holds all these words."""
        lines = (self.engine / "calls.jsonl").read_text().splitlines()
        return [words for _, words in map(json.loads, lines) if {*wanted} <= {*words}]


@pytest.fixture
def laptop(cluster: Cluster, tmp_path: Path) -> Generator[Laptop]:
    """One whose cluster's nodes reach a FloxHub; they are as before afterwards."""
    flox = FloxCluster(cluster)
    made = Laptop(cluster, tmp_path)
    try:
        with flox.taken_out():
            yield made
    finally:
        for node in cluster.nodes:
            cluster.kubectl("label", "node", node.name, f"{MARK}-")


@pytest.mark.timeout(900)
def test_up_again_status_and_down(laptop: Laptop, cluster: Cluster) -> None:
    done = laptop.run("up", "--nodes", "2", "--port", "9090")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kind-flox" in done.stdout
    assert done.stdout.splitlines()[-1] == "curl http://localhost:9090/"
    containers = json.loads((laptop.engine / "containers.json").read_text())
    assert sorted(containers) == sorted(CONTAINERS)
    # The line works where the engine publishes what kind asks it to publish: it leads to what is asked here.
    assert "127.0.0.1:9090:30080/TCP" in containers[CONTAINERS[0]]["ports"]
    for node in cluster.nodes:
        assert "Hello from" in cluster.run(*FETCH, f"http://{node.address}:30080/").stdout
    assert len(laptop.calls("save")) == 1
    assert len(laptop.calls("import", "--platform=linux/amd64")) == 2

    status = laptop.run("status", "--json")
    assert status.returncode == 0, status.stdout + status.stderr
    found = json.loads(status.stdout)
    assert (found["ours"], found["demo"], set(found["nodes"].values())) == (True, True, {True})

    before = _pods(cluster)
    again = laptop.run("up")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.splitlines()[-1] == "curl http://localhost:9090/", "where it was made to answer"
    assert (len(laptop.calls("run")), len(laptop.calls("save")), len(laptop.calls("import"))) == (2, 1, 2)
    assert _pods(cluster) == before, "nothing that is right is made anew"

    cluster.kubectl("label", "node", cluster.nodes[0].name, f"{MARK}=somebody", "--overwrite")
    for words in (("up",), ("down",)):
        refused = laptop.run(*words)
        assert (refused.returncode, "did not make" in refused.stderr) == (3, True), refused.stderr
    assert _pods(cluster) == before
    cluster.kubectl("label", "node", cluster.nodes[0].name, f"{MARK}=flox-node-kind", "--overwrite")

    cluster.kubectl("delete", "--filename", "docs/examples/web.yaml", "--wait", timeout=120)  # it goes with its nodes
    down = laptop.run("down")
    assert down.returncode == 0, down.stderr
    assert json.loads((laptop.engine / "containers.json").read_text()) == {}
    assert "kind-flox" not in laptop.kubeconfig.read_text()
    assert "There is no cluster flox" in laptop.run("down").stdout


def _pods(cluster: Cluster) -> dict[str, str]:
    """Every pod by its uid."""
    items = cluster.get("pods", "--all-namespaces")["items"]
    return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in items}
