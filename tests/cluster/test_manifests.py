"""The manifests on a real API server: it takes them, and whoever steals the reporter's token gains nothing by it."""

import datetime as dt
import json
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flox_node.kube import manifests, names
from tests import kustomize
from tests.cluster.caller import Answer, Caller, caller, everything
from tests.cluster.cluster import Cluster
from tests.cluster.objects import Object, pod

OWN, OTHER = "/api/v1/nodes/worker-1", "/api/v1/nodes/worker-2"
SLOTS = "/apis/coordination.k8s.io/v1/namespaces/flox-node/leases"
AS_REPORTER = "?fieldManager=flox-node"
EVENTS = "/api/v1/namespaces/default/events"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
THEIRS = {"key": "flox.test/theirs", "value": "1", "effect": "NoSchedule"}
FOREIGN_STARTUP_TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/gpu"
OURS = {"key": names.NOT_READY, "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def permissions(cluster: Cluster) -> Generator[list[Object]]:
    """The manifests, on no node: what is tried here needs no image. What tests add to them goes with them."""
    objects = manifests.objects(manifests.Options(node_selector={"flox.test/none": "true"}))
    cluster.apply(*objects)
    cluster.wait_until(lambda: all("observedGeneration" in status for status in policies(cluster).values()))
    cluster.kubectl("taint", "node", "worker-1", "flox.test/theirs=1:NoSchedule")
    yield objects
    cluster.kubectl("taint", "node", "worker-1", "flox.test/theirs-")
    cluster.delete(*objects)


@pytest.fixture(scope="module")
def thief(cluster: Cluster, permissions: list[Object], tmp_path_factory: pytest.TempPathFactory) -> Generator[Caller]:
    """Whoever got into the reporter of worker-1 and took the token that its pod has."""
    template = permissions[-1]["spec"]["template"]["spec"]
    access = next(volume for volume in template["volumes"] if volume["name"] == "api-access")
    shared = {name: template[name] for name in ("serviceAccountName", "securityContext", "tolerations")}
    victim = pod("victim", "sleep", "1000", node="worker-1", volumes=[access], **shared)
    victim["metadata"]["namespace"] = names.NAMESPACE
    victim["spec"]["containers"][0] |= {
        "volumeMounts": [{"name": "api-access", "mountPath": ACCOUNT}],
        "securityContext": {"runAsUser": 65532},
    }
    permissions.append(victim)
    cluster.apply(victim)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/victim", "--namespace=flox-node")
    token = cluster.kubectl("exec", "victim", "--namespace=flox-node", "--", "cat", f"{ACCOUNT}/token")
    with caller(cluster, token, tmp_path_factory.mktemp("thief")) as call:
        # The API server takes a moment to know the policies.
        cluster.wait_until(lambda: bool(call("PATCH", OWN, [add("/metadata/labels/evil", "1")]).status == 403))
        yield call


def policies(cluster: Cluster) -> dict[str, Any]:
    found = cluster.get("validatingadmissionpolicies", "--field-selector=metadata.name!=none")["items"]
    return {item["metadata"]["name"]: item.get("status", {}) for item in found if "flox" in item["metadata"]["name"]}


def add(path: str, value: object) -> Object:
    return {"op": "add", "path": path, "value": value}


def remove(path: str) -> Object:
    return {"op": "remove", "path": path}


def still(path: str, value: object) -> Object:
    return {"op": "test", "path": path, "value": value}


def assert_denied(answer: Answer, because: str = "") -> None:
    """By a policy of ours that says so, or by RBAC; not because the request was nonsense."""
    assert answer.status == 403, f"{answer.status}: {answer.message or answer.body}"
    assert because in answer.message
    assert re.search(r"Policy 'flox-node-|cannot ", answer.message), answer.message


def assert_done(answer: Answer) -> None:
    assert answer.status in (200, 201), answer.message


def time_of(seconds_from_now: float) -> str:
    then = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds_from_now)
    return then.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def slot(holder: str, renewed: str | None = None, seconds: int = 60, **metadata: object) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "flox-node-slot-0", "namespace": names.NAMESPACE, **metadata},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": renewed or time_of(0)},
    }


def event(about: Mapping[str, str], **more: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "worker-1.", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", **about},
        "reason": names.Happening.INSTALLED,
        "message": "told",
        "type": "Normal",
        "source": {"component": "flox-node", "host": "worker-1"},
        "reportingComponent": "flox-node",
        "reportingInstance": "worker-1",
        **more,
    }


OWN_NODE = {"kind": "Node", "name": "worker-1"}
A_POD = {"kind": "Pod", "name": "victim", "namespace": "default"}
OTHER_OWNER = [{"apiVersion": "v1", "kind": "Node", "name": "worker-2", "uid": "0"}]


def test_the_api_server_takes_what_an_overlay_changes(cluster: Cluster, permissions: list[Object]) -> None:
    base = kustomize.objects(kustomize.DAEMONSET / "base")
    changed = [
        item
        for folder in sorted((kustomize.DAEMONSET / "overlays").iterdir())
        for item in kustomize.objects(folder)
        if item not in base
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": changed})

    told = cluster.kubectl("apply", "--filename=-", "--dry-run=server", "--validate=strict", input=text)

    assert told.count("configured (server dry run)") == len(changed) > 10


def test_a_pod_sees_a_node_whose_root_is_no_shared_mount_with_the_overlay_for_it_only(cluster: Cluster) -> None:
    def sight(name: str, folder: str) -> Object:
        (daemonset,) = (item for item in kustomize.objects(kustomize.DAEMONSET / folder) if item["kind"] == "DaemonSet")
        template = daemonset["spec"]["template"]["spec"]
        volumes = [volume for volume in template["volumes"] if volume["name"] == "host"]
        seeing = pod(name, "sleep", "1000", node="worker-2", volumes=volumes)
        mounts = template["containers"][0]["volumeMounts"]
        seeing["spec"]["containers"][0]["volumeMounts"] = [mount for mount in mounts if mount["name"] == "host"]
        return seeing

    def waits_because() -> str:
        (status,) = cluster.get("pod", "blind")["status"].get("containerStatuses", [{}])
        return str(status.get("state", {}).get("waiting", {}).get("message"))

    pods = [sight("blind", "base"), sight("seeing", "overlays/no-systemd")]
    node = cluster.node("worker-2")
    node.run("mount --make-private /")  # as every init but systemd leaves it
    try:
        cluster.apply(*pods)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/seeing")
        assert cluster.kubectl("exec", "seeing", "--", "cat", "/host/etc/hostname") == "worker-2\n"
        cluster.wait_until(lambda: "not a shared or slave mount" in waits_because())
    finally:
        cluster.delete(*pods)
        node.run("mount --make-shared /")


# What the reporter does.


def test_the_policies_say_what_they_seem_to_say(cluster: Cluster, permissions: list[Object]) -> None:
    found = policies(cluster)

    assert sorted(found) == ["flox-node-events", "flox-node-leases", "flox-node-nodes"]
    warnings = [warning for status in found.values() for warning in status.get("typeChecking", {}).values()]
    assert not warnings


def test_the_reporter_labels_its_node_and_sets_and_lifts_its_taint(cluster: Cluster, thief: Caller) -> None:
    opened = [
        still("/spec/taints", [THEIRS]),
        add("/spec/taints", [THEIRS, OURS]),
        add("/metadata/labels/flox.dev~1enabled", "true"),
        add("/metadata/annotations/flox.dev~1payload", "abc"),
    ]
    closed = [
        still("/spec/taints", [THEIRS, OURS]),
        add("/spec/taints", [THEIRS]),
        still("/metadata/labels/flox.dev~1enabled", "true"),
        remove("/metadata/labels/flox.dev~1enabled"),
        remove("/metadata/annotations/flox.dev~1payload"),
    ]

    assert_done(thief("PATCH", OWN, opened))
    node = cluster.get("node", "worker-1")
    assert node["metadata"]["labels"][names.ENABLED] == "true"
    assert node["spec"]["taints"] == [THEIRS, OURS]

    assert thief("PATCH", OWN, opened).status == 422  # somebody was there between: the test fails, nothing is written
    assert_done(thief("PATCH", OWN, closed))
    assert names.ENABLED not in cluster.get("node", "worker-1")["metadata"]["labels"]


@pytest.mark.parametrize(
    "key", ["startup-taint.cluster-autoscaler.kubernetes.io/flox", "readiness.k8s.io/flox-not-ready"]
)
def test_the_reporter_lifts_and_sets_each_kind_of_startup_taint(cluster: Cluster, thief: Caller, key: str) -> None:
    cluster.kubectl("taint", "node", "worker-1", f"{key}:NoSchedule")
    taints = cluster.get("node", "worker-1")["spec"]["taints"]
    left = [taint for taint in taints if taint["key"] != key]
    assert_done(thief("PATCH", OWN, [still("/spec/taints", taints), add("/spec/taints", left)]))
    again = [*left, {"key": key, "effect": "NoSchedule"}]
    assert_done(thief("PATCH", OWN, [still("/spec/taints", left), add("/spec/taints", again)]))
    assert_done(thief("PATCH", OWN, [still("/spec/taints", again), add("/spec/taints", left)]))


def test_the_reporter_lifts_a_startup_taint_of_any_effect(cluster: Cluster, thief: Caller) -> None:
    cluster.kubectl("taint", "node", "worker-1", f"{names.NOT_READY}:PreferNoSchedule")

    assert_done(thief("PATCH", OWN, [add("/metadata/annotations/flox.dev~1platform", "plain")]))  # with it in place
    taints = cluster.get("node", "worker-1")["spec"]["taints"]
    assert_done(thief("PATCH", OWN, [still("/spec/taints", taints), add("/spec/taints", [THEIRS])]))

    assert_done(thief("PATCH", OWN, [remove("/metadata/annotations/flox.dev~1platform")]))


@pytest.mark.parametrize("patch", ["strategic", "json"])
def test_the_reporter_sets_its_condition(cluster: Cluster, thief: Caller, patch: str) -> None:
    def said() -> list[str]:
        conditions = cluster.get("node", "worker-1")["status"]["conditions"]
        return [condition["status"] for condition in conditions if condition["type"] == names.CONDITION]

    for status in ("False", "True"):
        condition = {"type": names.CONDITION, "status": status, "reason": "Installed", "message": ""}
        if patch == "strategic":
            body: object = {"status": {"conditions": [condition]}}
        else:
            kinds = [item["type"] for item in cluster.get("node", "worker-1")["status"]["conditions"]]
            place = str(kinds.index(names.CONDITION)) if names.CONDITION in kinds else "-"
            body = [{**add(f"/status/conditions/{place}", condition), "op": "add" if place == "-" else "replace"}]
        assert_done(thief("PATCH", f"{OWN}/status", body, patch=patch))
        assert said() == [status]
    gone = {"type": names.CONDITION, "$patch": "delete"}
    assert_done(thief("PATCH", f"{OWN}/status", {"status": {"conditions": [gone]}}, patch="strategic"))
    assert said() == []


def test_the_reporter_takes_renews_and_releases_a_slot(cluster: Cluster, thief: Caller) -> None:
    path = f"{SLOTS}/flox-node-slot-0"

    def write(holder: str, renewed: str | None = None) -> None:
        version = thief("GET", path).body["metadata"]["resourceVersion"]
        assert_done(thief("PUT", f"{path}{AS_REPORTER}", slot(holder, renewed, resourceVersion=version)))

    assert thief("GET", SLOTS).body["items"] == []
    assert_done(thief("POST", f"{SLOTS}{AS_REPORTER}", slot("worker-1")))
    write("worker-1", time_of(1))
    write("")
    write("worker-1")

    cluster.apply(slot("worker-2", time_of(-61)))
    write("worker-1")
    cluster.kubectl("delete", "lease", "flox-node-slot-0", "--namespace=flox-node")


def test_the_reporter_tells_of_its_node(cluster: Cluster, thief: Caller) -> None:
    assert_done(thief("POST", EVENTS, event(OWN_NODE)))
    assert_done(thief("POST", EVENTS, event(OWN_NODE)))

    events = cluster.get("events", "--field-selector=involvedObject.kind=Node,involvedObject.name=worker-1")["items"]
    ours = [item["metadata"]["name"] for item in events if item.get("message") == "told"]
    assert len(ours) == 2
    cluster.kubectl("delete", "events", *ours)


def test_the_reporter_tells_of_pods_in_whatever_namespace(cluster: Cluster, thief: Caller) -> None:
    for reason in names.PodHappening:
        told = event({**A_POD, "namespace": "kube-system"}, reason=reason)
        told["metadata"]["namespace"] = "kube-system"
        assert_done(thief("POST", EVENTS.replace("default", "kube-system"), told))
    ours = cluster.get("events", "--namespace=kube-system", "--field-selector=involvedObject.name=victim")["items"]
    assert {item["reason"] for item in ours} == {*names.PodHappening}
    cluster.kubectl("delete", "events", "--namespace=kube-system", *(item["metadata"]["name"] for item in ours))


def test_a_node_with_as_much_on_it_as_fits_is_no_more_than_the_policies_can_look_at(
    cluster: Cluster, thief: Caller, tmp_path: Path
) -> None:
    def merge(metadata: Object) -> None:
        file = tmp_path / "patch.json"
        file.write_text(json.dumps({"metadata": metadata}))
        cluster.kubectl("patch", "node", "worker-1", "--type=merge", f"--patch-file={file}")

    much: Object = {f"flox.test/{index}": "x" * 1000 for index in range(240)}
    few: Object = {f"flox.test/{index}": "x" * 60 for index in range(200)}
    merge({"annotations": much, "labels": few})

    assert_done(thief("PATCH", OWN, [add("/metadata/labels/flox.dev~1enabled", "true")]))
    condition = {"type": names.CONDITION, "status": "True", "reason": "Installed", "message": ""}
    assert_done(thief("PATCH", f"{OWN}/status", {"status": {"conditions": [condition]}}, patch="strategic"))

    merge({"annotations": dict.fromkeys(much), "labels": {names.ENABLED: None, **dict.fromkeys(few)}})


# What a thief would like to do.

# By what the policy says of it.
NODE_WRITES: dict[str, dict[str, tuple[str, object]]] = {
    "the Node that its pod runs on, and no other": {
        "our label on another node": (OTHER, [add("/metadata/labels/flox.dev~1enabled", "true")]),
        "our annotation on another node": (OTHER, {"metadata": {"annotations": {"flox.dev/payload": "x"}}}),
        "our taint on another node": (OTHER, [add("/spec/taints", [OURS])]),
        "our condition on another node": (
            f"{OTHER}/status",
            {"status": {"conditions": [{"type": names.CONDITION, "status": "True"}]}},
        ),
        "nothing at all on another node": (OTHER, []),
    },
    "labels that begin with flox.dev/, and no others": {
        "a label that is not ours": (OWN, [add("/metadata/labels/evil", "1")]),
        "a label that looks like ours": (OWN, [add("/metadata/labels/flox.dev.evil~1enabled", "1")]),
        "a label of a domain below ours": (OWN, [add("/metadata/labels/sub.flox.dev~1enabled", "1")]),
        "another value of somebody's label": (OWN, [add("/metadata/labels/kubernetes.io~1hostname", "worker-2")]),
        "somebody's label away": (OWN, [remove("/metadata/labels/kubernetes.io~1hostname")]),
        "all labels away": (OWN, [remove("/metadata/labels")]),
        "all labels replaced by ours": (OWN, [add("/metadata/labels", {"flox.dev/enabled": "true"})]),
        "our label and another in one patch": (
            OWN,
            [add("/metadata/labels/flox.dev~1enabled", "true"), add("/metadata/labels/evil", "1")],
        ),
        "a label, by way of the status": (f"{OWN}/status", [add("/metadata/labels/evil", "1")]),
    },
    "annotations that begin with flox.dev/, and no others": {
        "an annotation that is not ours": (OWN, [add("/metadata/annotations/evil", "1")]),
        "somebody's annotation away": (OWN, {"metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": None}}}),
        "an annotation, by way of the status": (f"{OWN}/status", [add("/metadata/annotations/evil", "1")]),
    },
    "nothing of a Node's metadata but labels and annotations": {
        "a finalizer": (OWN, [add("/metadata/finalizers", ["flox.dev/never"])]),
        "an owner": (OWN, [add("/metadata/ownerReferences", OTHER_OWNER)]),
        "a finalizer, by way of the status": (f"{OWN}/status", [add("/metadata/finalizers", ["flox.dev/never"])]),
        "an owner, by way of the status": (f"{OWN}/status", [add("/metadata/ownerReferences", OTHER_OWNER)]),
    },
    "lifts startup taints of Flox, and changes no other": {
        "a taint that is not ours": (OWN, [add("/spec/taints/-", {"key": "evil", "effect": "NoSchedule"})]),
        "somebody's startup taint": (
            OWN,
            [add("/spec/taints/-", {"key": FOREIGN_STARTUP_TAINT, "effect": "NoSchedule"})],
        ),
        "a startup taint that evicts": (
            OWN,
            [add("/spec/taints/-", {"key": "readiness.k8s.io/flox-not-ready", "effect": "NoExecute"})],
        ),
        "a taint that evicts": (OWN, [add("/spec/taints/-", {"key": names.NOT_READY, "effect": "NoExecute"})]),
        "somebody's taint away": (OWN, [remove("/spec/taints/0")]),
        "all taints away": (OWN, [remove("/spec/taints")]),
        "another effect of somebody's taint": (OWN, [add("/spec/taints/0/effect", "NoExecute")]),
        "another value of somebody's taint": (OWN, [add("/spec/taints/0/value", "2")]),
        "somebody's taint in exchange for ours": (OWN, [add("/spec/taints", [OURS])]),
    },
    "nothing of a Node's spec but a taint": {
        "a cordon": (OWN, {"spec": {"unschedulable": True}}),
        "a provider's id": (OWN, {"spec": {"providerID": "aws:///evil"}}),
        "pod addresses": (OWN, {"spec": {"podCIDR": "10.0.0.0/8", "podCIDRs": ["10.0.0.0/8"]}}),
    },
    "nothing of a Node's status but a condition": {
        "capacity": (f"{OWN}/status", {"status": {"capacity": {"cpu": "1000"}}}),
        "allocatable": (f"{OWN}/status", {"status": {"allocatable": {"evil.test/gpu": "8"}}}),
        "an address": (f"{OWN}/status", [add("/status/addresses/0/address", "192.0.2.12")]),
        "the kubelet's port": (f"{OWN}/status", {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 6443}}}}),
        "the node's information": (f"{OWN}/status", {"status": {"nodeInfo": {"kubeletVersion": "v9.9.9"}}}),
        "the node's images": (f"{OWN}/status", {"status": {"images": [{"names": ["evil"], "sizeBytes": 1}]}}),
        "runtime handlers": (f"{OWN}/status", {"status": {"runtimeHandlers": [{"name": "evil"}]}}),
        "attached volumes": (f"{OWN}/status", {"status": {"volumesInUse": ["evil"]}}),
        "the whole status away": (f"{OWN}/status", [add("/status", {})]),
    },
    "the condition FloxRuntimeReady, and no other": {
        "the Ready condition": (f"{OWN}/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        "a new condition": (f"{OWN}/status", {"status": {"conditions": [{"type": "Evil", "status": "True"}]}}),
        "a condition away": (f"{OWN}/status", {"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}),
        "all conditions away": (f"{OWN}/status", [remove("/status/conditions")]),
        "our condition twice": (
            f"{OWN}/status",
            [add("/status/conditions/-", {"type": names.CONDITION, "status": status}) for status in ("True", "False")],
        ),
    },
}


@pytest.mark.parametrize(("because", "what"), [(why, what) for why in NODE_WRITES for what in NODE_WRITES[why]])
def test_a_thief_does_not_write_on_a_node(thief: Caller, because: str, what: str) -> None:
    path, body = NODE_WRITES[because][what]
    assert_denied(thief("PATCH", path, body, patch="json" if isinstance(body, list) else "strategic"), because)


def test_a_thief_neither_makes_nor_applies_nor_removes_a_node(thief: Caller) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-3"}}
    assert_denied(thief("POST", "/api/v1/nodes", node))
    assert_denied(thief("PUT", OWN, node))
    assert_denied(thief("DELETE", OWN))
    assert_denied(thief("PATCH", f"/api/v1/nodes/worker-3{AS_REPORTER}", node, patch="apply"))
    own = {**node, "metadata": {"name": "worker-1", "labels": {"evil": "1"}}}
    assert_denied(thief("PATCH", f"{OWN}{AS_REPORTER}&force=true", own, patch="apply"))


NEXT_YEAR = time_of(3e7)
SLOT_WRITES: dict[str, tuple[str, str, Object]] = {
    "another lease": ("and no others", AS_REPORTER, slot("worker-1", name="kube-scheduler")),
    "a lease that looks like a slot": ("and no others", AS_REPORTER, slot("worker-1", name="flox-node-slot-1.evil")),
    "a slot for another node": ("and for no other", AS_REPORTER, slot("worker-2")),
    "a slot from next year on": ("5 minutes", AS_REPORTER, slot("worker-1", NEXT_YEAR)),
    "a slot for years": ("for an hour at most", AS_REPORTER, slot("worker-1", seconds=100_000_000)),
    "a slot with a finalizer": ("finalizers", AS_REPORTER, slot("worker-1", finalizers=["flox.dev/x"])),
    "a slot with an owner": ("owners", AS_REPORTER, slot("worker-1", ownerReferences=OTHER_OWNER)),
    "a slot by another manager": ("field manager", "?fieldManager=evil", slot("worker-1")),
    "a slot by no manager": ("field manager", "", slot("worker-1")),
}


@pytest.mark.parametrize("what", SLOT_WRITES)
def test_a_thief_does_not_make_a_lease(thief: Caller, what: str) -> None:
    because, query, lease = SLOT_WRITES[what]
    assert_denied(thief("POST", f"{SLOTS}{query}", lease), because)


@pytest.fixture(scope="module")
def held(cluster: Cluster, permissions: list[Object]) -> Generator[Object]:
    """The metadata of a slot that worker-2 holds."""
    cluster.apply(slot("worker-2", name="flox-node-slot-9"))
    metadata = cluster.get("lease", "flox-node-slot-9", "--namespace=flox-node")["metadata"]
    yield {"name": "flox-node-slot-9", "resourceVersion": metadata["resourceVersion"]}
    cluster.kubectl("delete", "lease", "flox-node-slot-9", "--namespace=flox-node")


@pytest.mark.parametrize(
    ("how", "holder", "renewed"),
    [
        ("by taking it", "worker-1", 0),
        ("by releasing it", "", 0),
        ("by a lie about the future", "worker-1", 200),
        ("by a lie about the past", "worker-1", -3e7),
    ],
)
def test_a_thief_does_not_get_a_slot_that_another_node_holds(
    thief: Caller, held: Object, how: str, holder: str, renewed: float
) -> None:
    lease = slot(holder, time_of(renewed), **held)
    assert_denied(thief("PUT", f"{SLOTS}/{held['name']}{AS_REPORTER}", lease), "another node holds this slot")


def test_a_thief_does_not_get_it_by_a_lie_about_who_wrote_when(thief: Caller, held: Object) -> None:
    stamp = {
        "manager": "flox-node",
        "operation": "Update",
        "time": NEXT_YEAR[:19] + "Z",
        "apiVersion": "coordination.k8s.io/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:renewTime": {}}},
    }
    lease = slot("worker-1", NEXT_YEAR, managedFields=[stamp], **held)

    path = f"{SLOTS}/{held['name']}"
    assert_denied(thief("PUT", f"{path}?fieldManager=flox-node", lease), "5 minutes")
    assert_denied(thief("PUT", f"{path}?fieldManager=evil", lease), "field manager")
    assert_denied(thief("DELETE", path), "cannot delete")
    assert_denied(thief("PATCH", path, [add("/spec/holderIdentity", "worker-1")]), "cannot patch")


EVENT_WRITES: dict[str, Object] = {
    "another node": event({"kind": "Node", "name": "worker-2"}),
    "a pod, what is said of nodes": event(A_POD),
    "a pod, as if the kubelet spoke": event(A_POD, reason="FloxFetching", source={"component": "kubelet"}),
    "a pod, as if another node spoke": event(
        A_POD, reason="FloxFetching", source={"component": "flox-node", "host": "worker-2"}
    ),
    "a pod, as if Kubernetes spoke": event(A_POD, reason="FailedMount"),
    "a pod that is called as the node": event({"kind": "Pod", "name": "worker-1", "namespace": "default"}),
    "a deployment": event({"kind": "Deployment", "name": "web", "namespace": "default"}, reason="FloxFetching"),
    "nothing": event({}),
    "its node and a pod": event(OWN_NODE, related={"kind": "Pod", "name": "victim", "namespace": "default"}),
    "its node, as if Kubernetes spoke": event(OWN_NODE, reason="NodeNotReady"),
    "its node, as if the kubelet spoke": event(OWN_NODE, source={"component": "kubelet"}),
    "its node, as if a controller spoke": event(OWN_NODE, reportingComponent="node-controller"),
    "its node, as if another node spoke": event(OWN_NODE, reportingInstance="worker-2"),
    "its node, for ever": event(
        OWN_NODE, metadata={"generateName": "worker-1.", "namespace": "default", "finalizers": ["flox.dev/never"]}
    ),
}


@pytest.mark.parametrize("what", EVENT_WRITES)
def test_a_thief_does_not_tell_of(thief: Caller, what: str) -> None:
    assert_denied(thief("POST", EVENTS, EVENT_WRITES[what]))


def test_a_thief_is_nobody_else(thief: Caller) -> None:
    for header in (
        {"Impersonate-User": "system:admin"},
        {"Impersonate-User": "a", "Impersonate-Group": "system:masters"},
    ):
        assert_denied(thief("GET", OWN, headers=header))
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    assert_denied(thief("POST", "/api/v1/namespaces/flox-node/serviceaccounts/flox-node/token", body))


# Everything that the API server offers.

MAY = {
    ("get", "nodes", ""),
    ("patch", "nodes", ""),
    ("patch", "nodes/status", ""),
    *(("create", "events", namespace) for namespace in ("flox-node", "default", "kube-system")),
    *((verb, "leases.coordination.k8s.io", "flox-node") for verb in ("get", "list", "watch", "create", "update")),
    ("get", "daemonsets.apps", "flox-node"),
    # What the API server lets everybody ask about himself.
    ("create", "selfsubjectreviews.authentication.k8s.io", ""),
    ("create", "selfsubjectaccessreviews.authorization.k8s.io", ""),
    ("create", "selfsubjectrulesreviews.authorization.k8s.io", ""),
}


def test_of_all_that_the_api_server_offers_a_thief_may_do_what_the_reporter_does_and_no_more(thief: Caller) -> None:
    tried, may = 0, set()
    for request in everything(thief, "flox-node", ("flox-node", "default", "kube-system")):
        tried += 1
        answer = thief(request.method, request.path, {})
        assert answer.status != 401
        if not (answer.status == 403 and re.search(r'User "[^"]*" cannot ', answer.message)):
            may.add((request.verb, request.resource, request.namespace))
    assert tried > 1000
    assert may == MAY


@pytest.mark.parametrize("path", ["/metrics", "/logs/", "/debug/pprof/", "/debug/flags/v", "/configz"])
def test_a_thief_does_not_read_the_insides_of_the_api_server(thief: Caller, path: str) -> None:
    assert_denied(thief("GET", path))


def test_a_token_that_belongs_to_no_node_changes_nothing(
    cluster: Cluster, permissions: list[Object], held: Object, tmp_path: Path
) -> None:
    token = cluster.kubectl("create", "token", "flox-node", "--namespace=flox-node").strip()
    with caller(cluster, token, tmp_path) as call:
        for node in (OWN, OTHER):
            assert_denied(call("PATCH", node, [add("/metadata/labels/flox.dev~1enabled", "true")]))
            condition = {"type": names.CONDITION, "status": "True"}
            assert_denied(call("PATCH", f"{node}/status", {"status": {"conditions": [condition]}}, patch="strategic"))
        for holder in ("", "worker-1", "worker-2"):
            assert_denied(call("POST", f"{SLOTS}{AS_REPORTER}", slot(holder)))
            assert_denied(call("PUT", f"{SLOTS}/{held['name']}{AS_REPORTER}", slot(holder, **held)))
        for about in (OWN_NODE, {"kind": "Node"}, {"kind": "Node", "name": ""}):
            assert_denied(call("POST", EVENTS, event(about)))
