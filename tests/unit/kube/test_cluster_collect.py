"""The bundle of a cluster: what is in it, and what must not be."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

from flox_node.kube.collect import collect, with_logs
from flox_node.kube.doctor.facts import gather
from flox_node.kube.names import CONDITION
from flox_node.kube.resources import NODES, PODS
from flox_node.support import Bundle
from tests.unit.kube.fake_cluster import FakeCluster, flox_pod
from tests.unit.kube.test_cluster_doctor import healthy

SECRET = "s3cr3t-Value_of-somebody"


def members(bundle: Bundle) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(bundle.archive)) as archive:
        found = {}
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix("flox-node-support/")] = file.read().decode()
        return found


def a_cluster_with_secrets() -> FakeCluster:
    cluster = healthy()
    log = f"{PODS.path('flox-node-a', namespace='flox-node')}/log"
    cluster.logs[f"{log}?node"] = f"asking the hub with Authorization: Bearer {SECRET}\n"
    cluster.logs[f"{log}?node&previous"] = "the run before\n"
    cluster.logs[f"{log}?reporter"] = f"token={SECRET}\n"
    cluster.objects[NODES.path("a")]["metadata"]["annotations"] = {"cloud.test/credentials": SECRET}
    cluster.put("/api/v1/namespaces/default/secrets/floxhub", {"metadata": {"name": "floxhub"}, "data": {"a": SECRET}})
    pod = flox_pod("private", "a")
    pod["metadata"]["annotations"] |= {"vault.test/token": SECRET}
    pod["spec"]["containers"][0]["env"] = [{"name": "DATABASE", "value": SECRET}]
    cluster.put(PODS.path("private", namespace="default"), pod)
    config = cluster.objects["/api/v1/namespaces/flox-node/configmaps/flox-node"]
    config["data"]["policy.toml"] = f'[nix]\nsubstituters = ["https://me:{SECRET}@cache.example.com"]\n'
    config["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": SECRET}
    return cluster


def test_no_secret_is_read_or_packed() -> None:
    cluster = a_cluster_with_secrets()
    cluster.requests.clear()
    found = members(collect(cluster))
    assert [name for name, text in found.items() if SECRET in text] == []
    assert not any("/secrets" in path for _, path, _ in cluster.requests)
    assert {method for method, _, _ in cluster.requests} == {"GET"}


def test_what_a_helper_needs_is_there() -> None:
    found = members(collect(a_cluster_with_secrets()))
    read: dict[str, Any] = {name: json.loads(text) for name, text in found.items() if name.endswith(".json")}
    assert read["versions.json"]["server"]["gitVersion"] == "v1.34.0"
    assert [row["name"] for row in read["status.json"]["nodes"]] == ["a", "b"]
    assert {each["id"] for each in read["doctor.json"]} > {"image", "annotations"}
    assert "missing" in str(read["objects.json"])  # the PodMonitor, which nobody asked for
    assert any(each["type"] == CONDITION for each in read["nodes.json"][0]["conditions"])
    assert [each["name"] for each in read["flox-pods.json"]] == ["private", "web"]
    assert read["flox-pods.json"][0]["annotations"] == {"flox.dev/environment": "demo/hello"}
    assert "the run before" in found["logs/a/node.previous.txt"]
    assert found["logs/a/reporter.previous.txt"] == ""
    assert "not available" in found["logs/b/node.txt"]


def test_in_a_large_cluster_the_logs_of_nodes_that_are_not_ready_come_first() -> None:
    from datetime import UTC, datetime

    cluster = healthy()
    cluster.objects[PODS.path("flox-node-b", namespace="flox-node")]["status"] = {"conditions": []}
    assert [pod["spec"]["nodeName"] for pod in with_logs(gather(cluster, datetime.now(UTC)))] == ["b", "a"]
