"""The doctor of a cluster: a healthy one has no findings, and each fault is found by its check, with its cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flox_node.findings import State
from flox_node.kube.api import Object
from flox_node.kube.apply import apply
from flox_node.kube.doctor import CHECKS, examine
from flox_node.kube.manifests import objects
from flox_node.kube.names import CONDITION
from flox_node.kube.resources import BINDINGS, EVENTS, NODES, PODS, POLICIES, RUNTIME_CLASSES
from flox_node.kube.waiting import follow
from tests.unit.kube.fake_cluster import DAEMON_SET, FakeCluster, flox_pod, node

REFERENCE = Path(__file__).parents[3] / "docs/reference.md"
POD_A = PODS.path("flox-node-a", namespace="flox-node")


def healthy() -> FakeCluster:
    cluster = FakeCluster("a", "b")
    list(apply(cluster, objects()))
    follow(cluster, lambda _: None, timeout=100, clock=cluster.clock, sleep=cluster.sleep)
    cluster.put(PODS.path("web", namespace="default"), flox_pod("web", "a"))
    return cluster


def condition(cluster: FakeCluster, name: str) -> Object:
    conditions: list[Object] = cluster.objects[NODES.path(name)]["status"]["conditions"]
    return next(each for each in conditions if each["type"] == CONDITION)


def unready(cluster: FakeCluster, path: str = POD_A, **status: object) -> None:
    cluster.objects[path]["status"] = {"conditions": [{"type": "Ready", "status": "False"}], **status}


def waiting(cluster: FakeCluster, reason: str, message: str) -> None:
    state = {"waiting": {"reason": reason, "message": message}}
    unready(cluster, containerStatuses=[{"name": "node", "state": state}])


def event(cluster: FakeCluster, uid: str, reason: str, message: str) -> None:
    body = {
        "metadata": {"name": f"{uid}.1", "namespace": "default"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"uid": uid},
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    cluster.put(EVENTS.path(f"{uid}.1", namespace="default"), body)


def too_old(cluster: FakeCluster) -> None:
    cluster.version = {"major": "1", "minor": "30", "gitVersion": "v1.30.4"}


def no_daemon_set(cluster: FakeCluster) -> None:
    cluster.objects.pop(DAEMON_SET)


def uninstalling(cluster: FakeCluster) -> None:
    for container in cluster.objects[DAEMON_SET]["spec"]["template"]["spec"]["containers"]:
        container["args"][-1] = "--mode=uninstall"


def pods_refused(cluster: FakeCluster) -> None:
    cluster.objects[DAEMON_SET]["status"]["currentNumberScheduled"] = 1
    event(cluster, cluster.objects[DAEMON_SET]["metadata"]["uid"], "FailedCreate", "violates PodSecurity restricted")


def no_image(cluster: FakeCluster) -> None:
    waiting(cluster, "ImagePullBackOff", 'Back-off pulling image "flox-node:0.1.0"')


def crashing(cluster: FakeCluster) -> None:
    waiting(cluster, "CrashLoopBackOff", "back-off 40s")


def no_policy(cluster: FakeCluster) -> None:
    cluster.objects.pop(POLICIES.path("flox-node-nodes"))


def lax_policy(cluster: FakeCluster) -> None:
    cluster.objects[POLICIES.path("flox-node-nodes")]["spec"]["failurePolicy"] = "Ignore"


def auditing_binding(cluster: FakeCluster) -> None:
    cluster.objects[BINDINGS.path("flox-node-nodes")]["spec"]["validationActions"] = ["Audit"]


def other_rules(cluster: FakeCluster) -> None:
    cluster.objects[POLICIES.path("flox-node-nodes")]["spec"]["validations"] = [{"expression": "true"}]


def no_runtime_class(cluster: FakeCluster) -> None:
    cluster.objects.pop(RUNTIME_CLASSES.path("flox"))


def runtime_class_for_all_nodes(cluster: FakeCluster) -> None:
    cluster.objects[RUNTIME_CLASSES.path("flox")]["scheduling"] = {}


def foreign_runtime_class(cluster: FakeCluster) -> None:
    cluster.put(RUNTIME_CLASSES.path("flox-v2"), {"metadata": {"name": "flox-v2"}, "handler": "flox"})


def rolled_back(cluster: FakeCluster) -> None:
    unready(cluster)
    condition(cluster, "a").update(status="False", reason="RolledBack", message="containerd did not come back in 60 s")


def refused(cluster: FakeCluster) -> None:
    condition(cluster, "a").update(status="False", reason="Refused", message="The image of this node is immutable")


def down(cluster: FakeCluster) -> None:
    cluster.objects[NODES.path("a")]["status"]["conditions"][0].update(
        status="Unknown", message="Kubelet stopped posting"
    )


def slow(cluster: FakeCluster) -> None:
    unready(cluster)
    condition(cluster, "a").update(status="False", reason="Installing", message="placing the payload")


def excluded(cluster: FakeCluster) -> None:
    cluster.objects[NODES.path("a")]["metadata"]["labels"]["flox.dev/exclude"] = ""


def foreign_label(cluster: FakeCluster) -> None:
    cluster.objects[NODES.path("a")]["metadata"]["labels"]["flox-runtime"] = "enabled"


def wrong_value(cluster: FakeCluster) -> None:
    cluster.put(NODES.path("c"), node("c", labels={"flox.dev/enabled": "yes", "kubernetes.io/os": "windows"}))


def foreign_taint(cluster: FakeCluster) -> None:
    cluster.objects[NODES.path("a")]["spec"]["taints"] = [{"key": "flox.dev/notready", "effect": "NoSchedule"}]


def startup_taint(cluster: FakeCluster) -> None:
    cluster.objects[NODES.path("a")]["spec"]["taints"] = [{"key": "flox.dev/not-ready", "effect": "NoSchedule"}]


def not_reported(cluster: FakeCluster) -> None:
    cluster.objects[NODES.path("a")]["status"]["runtimeHandlers"] = [{"name": ""}, {"name": "runc"}]


def not_reported_yet(cluster: FakeCluster) -> None:
    not_reported(cluster)
    startup_taint(cluster)
    cluster.objects[NODES.path("a")]["spec"]["taints"][0]["key"] = "readiness.k8s.io/flox-not-ready"


def not_scheduled(cluster: FakeCluster) -> None:
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2 nodes are available",
    }
    pod = flox_pod("lonely", phase="Pending", conditions=[unscheduled])
    cluster.put(PODS.path("lonely", namespace="default"), pod)


def no_sandbox(cluster: FakeCluster) -> None:
    cluster.put(PODS.path("private", namespace="default"), flox_pod("private", "a", phase="Pending"))
    event(cluster, "pod-private", "FailedCreatePodSandBox", "demo/private: FloxHub refused the token")


def at_sign(cluster: FakeCluster) -> None:
    pod = flox_pod("pinned", "a", annotations={"flox.dev/environment": "demo/hello@3"})
    cluster.put(PODS.path("pinned", namespace="default"), pod)


def no_class(cluster: FakeCluster) -> None:
    cluster.put(PODS.path("forgot", namespace="default"), flox_pod("forgot", "a", runtime_class=None))


def test_a_label_that_a_node_group_preset_is_no_fault_while_the_startup_taint_is_there() -> None:
    cluster = healthy()
    not_reported_yet(cluster)
    assert next(each for each in examine(cluster) if each.id == "handler-reported").state is State.OK


@pytest.mark.parametrize(
    ("fault", "check", "state", "cause"),
    [
        (too_old, "kubernetes-version", State.PROBLEM, "v1.30.4"),
        (no_daemon_set, "daemon-set", State.PROBLEM, "there is no DaemonSet"),
        (uninstalling, "daemon-set", State.WARNING, "being uninstalled"),
        (pods_refused, "pods-created", State.PROBLEM, "1 pods of the DaemonSet are missing; FailedCreate: violates"),
        (no_image, "image", State.PROBLEM, "ImagePullBackOff on a: container node: Back-off pulling"),
        (crashing, "pods-run", State.PROBLEM, "CrashLoopBackOff on a"),
        (no_policy, "admission-policies", State.PROBLEM, "ValidatingAdmissionPolicy flox-node-nodes is missing"),
        (lax_policy, "admission-policies", State.PROBLEM, "cannot evaluate"),
        (auditing_binding, "admission-policies", State.PROBLEM, "does not deny"),
        (other_rules, "admission-policies", State.WARNING, "other rules"),
        (no_runtime_class, "runtime-class", State.PROBLEM, "no RuntimeClass flox"),
        (runtime_class_for_all_nodes, "runtime-class", State.PROBLEM, "its nodeSelector is {}"),
        (foreign_runtime_class, "foreign-runtime-classes", State.WARNING, "flox-v2 has the handler flox"),
        (rolled_back, "nodes-failed", State.PROBLEM, "a: RolledBack: containerd did not come back"),
        (refused, "nodes-refused", State.WARNING, "a: Refused: The image of this node is immutable"),
        (down, "nodes-down", State.WARNING, "a: NodeNotReady: Kubelet stopped posting"),
        (slow, "nodes-slow", State.PROBLEM, "a: Installing: placing the payload"),
        (excluded, "unmanaged-nodes", State.WARNING, "does not select a"),
        (foreign_label, "node-labels", State.WARNING, "flox-runtime=enabled on a"),
        (wrong_value, "node-labels", State.WARNING, "flox.dev/enabled=yes on c"),
        (foreign_taint, "node-labels", State.WARNING, "the taint flox.dev/notready on a"),
        (startup_taint, "startup-taint", State.PROBLEM, "a still has the startup taint"),
        (not_reported, "handler-reported", State.PROBLEM, "a is labelled, but"),
        (not_reported_yet, "startup-taint", State.PROBLEM, "a still has the startup taint readiness.k8s.io/flox"),
        (not_scheduled, "flox-pods", State.PROBLEM, "default/lonely: Unschedulable: 0/2 nodes are available"),
        (
            no_sandbox,
            "flox-pods",
            State.PROBLEM,
            "private: FailedCreatePodSandBox: demo/private: FloxHub refused",
        ),
        (at_sign, "annotations", State.WARNING, "with a colon, demo/hello:3"),
        (
            no_class,
            "annotations",
            State.WARNING,
            "default/forgot: has flox.dev/environment but not runtimeClassName flox",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_fault_is_found_with_its_cause(
    fault: Callable[[FakeCluster], None], check: str, state: State, cause: str
) -> None:
    cluster = healthy()
    fault(cluster)
    found = next(each for each in examine(cluster) if each.id == check)
    assert found.state is state, found
    assert cause in found.cause
    assert found.remedy


def test_a_healthy_cluster_has_no_findings_and_nothing_is_written() -> None:
    cluster = healthy()
    cluster.requests.clear()
    assert {each.id: each.cause for each in examine(cluster) if each.state is not State.OK} == {}
    assert {method for method, _, _ in cluster.requests} == {"GET"}


def test_a_cluster_without_us_can_be_examined() -> None:
    states = {each.id: each.state for each in examine(FakeCluster("a"))}
    assert states["daemon-set"] is State.PROBLEM
    assert states["image"] is State.SKIPPED
    assert states["node-labels"] is State.OK


def test_many_causes_are_shortened() -> None:
    cluster = healthy()
    for index in range(9):
        pod = flox_pod(f"bad-{index}", "a", annotations={"flox.dev/environment": "demo/hello@3"})
        cluster.put(PODS.path(f"bad-{index}", namespace="default"), pod)
    found = next(each for each in examine(cluster) if each.id == "annotations")
    assert found.cause.count("bad-") == 5
    assert found.cause.endswith("and 4 more")


def test_the_reference_has_every_check_with_what_it_looks_at_and_its_remedy() -> None:
    rows = REFERENCE.read_text().splitlines()
    for check in CHECKS:
        assert f"| `{check.id}` | {check.title} | {check.remedy} |" in rows
    assert len({check.id for check in CHECKS}) == len(CHECKS)
