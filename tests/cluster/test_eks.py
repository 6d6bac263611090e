"""EKS nodes that the bootstrap makes Flox nodes: a pod that waits, the reporter alone, then the DaemonSet beside it.

The tests of this module follow each other on one node, which is the only Flox node of the cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator

import pytest
import yaml

from flox_node.kube import names
from flox_node.settings import STARTUP_TAINTS
from flox_node.state import policy, policy_text
from tests.bed import eks, image
from tests.bed import flox as bed_flox
from tests.bed.platforms import dress
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import BESIDE, MANIFEST, NAMESPACE, FloxCluster, flox_pod
from tests.cluster.node import Node
from tests.cluster.objects import Object
from tests.conftest import FULL
from tests.kustomize import DAEMONSET
from tests.node.tree import tree

READINESS = "readiness.k8s.io/flox-not-ready"
OURS = (*STARTUP_TAINTS, READINESS)
THEIRS = "example.org/theirs"
WAITING = flox_pod("waiting", "demo/web", "busybox", "sleep", "100000", tolerations=[{"key": THEIRS}])
USER_DATA = f"etc/systemd/system/multi-user.target.wants/{eks.USER_DATA_UNIT}"
# What the administrator and the test put there themselves.
NOT_OURS = (*BESIDE, "var/lib/flox-node", "etc/flox-node")


@pytest.fixture(scope="module")
def flox(cluster: Cluster) -> Generator[FloxCluster]:
    """The overlay `baked`, on no node yet, and a Flox pod that waits."""
    applied = FloxCluster(cluster, nodes=())
    try:
        cluster.kubectl("apply", "--kustomize", DAEMONSET / "overlays/baked")
        applied.settings(f"startup_taints = {json.dumps(OURS)}\npurge = true\n")
        cluster.apply(WAITING)
        yield applied
    except BaseException as error:
        error.add_note(applied.logs())
        raise
    finally:
        cluster.delete(WAITING)
        applied.remove()


@pytest.fixture(scope="module")
def node(cluster: Cluster, flox: FloxCluster) -> Generator[Node]:
    """A node as an autoscaler makes one for the pod: label and taints of its group, the bootstrap in its user data."""
    taints = ",".join(f"{key}=:NoSchedule" for key in (*OURS, THEIRS))
    node = cluster.add_node("2.1", f"--register-with-taints={taints}", f"--node-labels={names.ENABLED}=true")
    try:
        dress(node, "eks-al2023")
        eks.put_user_data(node, hashlib.sha256(eks.archive().read_bytes()).hexdigest())
        node.write(policy.PATH, policy_text.applied(bed_flox.hub_policy(), None).decode())
        node.boot()
        flox.prepare(node)
        cluster.wait_ready(node)
        yield node
    finally:
        cluster.remove_node(node)


@pytest.fixture(scope="module")
def before(node: Node) -> dict[str, tuple[object, ...]]:
    """Every file of the node before anything of ours was installed."""
    return tree(node, NOT_OURS)


def taints_of(flox: FloxCluster, node: Node) -> set[str]:
    return {taint["key"] for taint in flox.node(node.name)["spec"].get("taints") or []}


def waiting(cluster: Cluster) -> Object:
    found: Object = cluster.get("pod", "waiting")
    return found


def why_it_waits(cluster: Cluster) -> str:
    conditions = waiting(cluster)["status"].get("conditions", [])
    return next((entry.get("message", "") for entry in conditions if entry["type"] == "PodScheduled"), "")


def assert_runs_on(cluster: Cluster, node: Node) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", "pod/waiting", "--timeout=180s", timeout=190)
    assert waiting(cluster)["spec"]["nodeName"] == node.name
    assert cluster.kubectl("exec", "waiting", "--", "hello") == "Hello, world!\n"


def test_a_flox_pod_waits_for_a_node_that_its_group_declares(cluster: Cluster, flox: FloxCluster) -> None:
    cluster.wait_until(lambda: "node affinity/selector" in why_it_waits(cluster), 60, "the pod waits for a label")
    (daemonset,) = cluster.get("daemonset", "--namespace", NAMESPACE)["items"]
    assert daemonset["status"]["desiredNumberScheduled"] == 0


@pytest.mark.timeout(240)
def test_a_node_whose_bootstrap_failed_joins_is_told_of_and_gets_no_flox_pod(
    cluster: Cluster, flox: FloxCluster, node: Node, before: object
) -> None:
    condition = flox.reason(node, "HandlerNotLive")
    assert "does not report the handler flox" in condition["message"]
    assert taints_of(flox, node) == {*OURS, THEIRS}
    cluster.wait_until(lambda: "untolerated taint" in why_it_waits(cluster), 60, "the pod waits for the taints to go")
    assert "nodeName" not in waiting(cluster)["spec"]
    assert not flox.pod_is_ready(node.name)


@pytest.mark.timeout(240)
def test_it_gets_its_flox_pod_once_the_handler_is_live_and_keeps_the_taints_of_others(
    cluster: Cluster, flox: FloxCluster, node: Node, before: object
) -> None:
    node.cut_power()
    eks.serve_payload(node)
    node.boot()
    cluster.wait_until(lambda: taints_of(flox, node) == {THEIRS}, 120, "the startup taints are lifted")
    handlers = flox.node(node.name)["status"]["runtimeHandlers"]
    assert "flox" in [handler["name"] for handler in handlers]
    assert flox.condition(node.name)["status"] == "True"
    # An autoscaler sets one anew: it is lifted as long as the handler is live.
    cluster.kubectl("taint", "node", node.name, f"{STARTUP_TAINTS[0]}=:NoSchedule")
    assert_runs_on(cluster, node)
    cluster.wait_until(lambda: taints_of(flox, node) == {THEIRS}, 60, "it is lifted again")


def payload_of(flox: FloxCluster, node: Node) -> str:
    return str(flox.node(node.name)["metadata"]["annotations"]["flox.dev/payload"])


@pytest.mark.skipif(not FULL, reason="did NOT run: `make test-full` has the DaemonSet adopt a node of the bootstrap")
@pytest.mark.timeout(600)
def test_the_daemonset_adopts_it_upgrades_it_restarts_nothing_and_leaves_no_trace(
    cluster: Cluster, flox: FloxCluster, node: Node, before: dict[str, tuple[object, ...]]
) -> None:
    assert_runs_on(cluster, node)
    pid, receipt = node.main_pid("containerd"), (node.root / "var/lib/flox-node/receipt.json").read_bytes()
    restarts = waiting(cluster)["status"]["containerStatuses"][0]["restartCount"]

    *objects, daemonset = yaml.safe_load_all(MANIFEST.read_text())
    daemonset["spec"]["template"]["spec"]["nodeSelector"]["kubernetes.io/hostname"] = node.name  # the only one here
    cluster.apply(*(item for item in objects if item["kind"] != "ConfigMap"), daemonset)
    cluster.rollout("daemonset/flox-node", "--namespace", NAMESPACE, timeout=120)
    flox.reason(node, "Installed")
    flox.converged(node)
    adopted = payload_of(flox, node)
    assert (node.root / "var/lib/flox-node/receipt.json").read_bytes() == receipt, "it finds nothing to do"
    assert flox.node(node.name)["metadata"]["annotations"]["flox.dev/platform"] == "eks-al2023"

    node.load(image.next_archive())
    images = [f"{name}={image.NEXT_REFERENCE}" for name in ("node", "reporter")]
    cluster.kubectl("set", "image", "daemonset/flox-node", "--namespace", NAMESPACE, *images)
    cluster.rollout("daemonset/flox-node", "--namespace", NAMESPACE, timeout=180)
    flox.converged(node)
    upgraded = payload_of(flox, node)
    assert upgraded != adopted
    assert node.main_pid("containerd") == pid
    assert waiting(cluster)["status"]["containerStatuses"][0]["restartCount"] == restarts

    node.reboot()
    cluster.wait_ready(node)
    flox.converged(node)
    assert payload_of(flox, node) == upgraded, "the user data of every boot do not bring the old one back"
    assert_runs_on(cluster, node)
    assert taints_of(flox, node) == {THEIRS}

    cluster.delete(WAITING)
    node.run(["rm", f"/{USER_DATA}"])
    done = flox.command("uninstall", "--purge", "--timeout=280")
    assert done.returncode == 0, done.stdout + done.stderr
    node.reboot()
    assert "flox" not in node.cri.handlers()
    found = tree(node, NOT_OURS)
    differing = {path for path in found.keys() | before if found.get(path) != before.get(path)}
    assert differing <= {"payload.tar.gz", USER_DATA}, "what the test put there and took away"
