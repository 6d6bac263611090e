"""What the two containers and the one service account may do is what is written here, in every overlay."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flox_node.kube import names
from flox_node.settings import STARTUP_TAINT, STARTUP_TAINTS
from tests.kustomize import DAEMONSET, Object, objects

FOLDERS = ["base", *sorted(f"overlays/{path.name}" for path in (DAEMONSET / "overlays").iterdir())]
USER = f"system:serviceaccount:{names.NAMESPACE}:{names.NAME}"

# Names of fields, so that one of a future Kubernetes is noticed too.
POD_FIELDS = {
    *("affinity", "automountServiceAccountToken", "containers", "enableServiceLinks", "nodeSelector"),
    *("priorityClassName", "securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations"),
    "volumes",
}
CONTAINER_FIELDS = {
    *("args", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe", "resources"),
    *("securityContext", "startupProbe", "terminationMessagePolicy", "volumeMounts"),
}
VOLUMES = {
    "host": {"hostPath": {"path": "/", "type": "Directory"}},
    "settings": {"configMap": {"name": "flox-node"}},
    "node-state": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    "reporter-state": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    "tmp": {"emptyDir": {}},
    "api-access": {
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ]
        }
    },
}
SECURITY: dict[str, Object] = {
    "node": {"privileged": True, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": True},
    "reporter": {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
# Where each volume is, and whether it can be written to.
MOUNTS = {
    "node": {
        "host": ("/host", True),
        "settings": ("/settings", False),
        "node-state": ("/exchange/node", True),
        "reporter-state": ("/exchange/reporter", False),
        "tmp": ("/tmp", True),
    },
    "reporter": {
        "settings": ("/settings", False),
        "node-state": ("/exchange/node", False),
        "reporter-state": ("/exchange/reporter", True),
        "api-access": ("/var/run/secrets/kubernetes.io/serviceaccount", False),
    },
}
ENVIRONMENT: dict[str, list[Object]] = {
    "node": [],
    "reporter": [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in (
            ("NODE_NAME", "spec.nodeName"),
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("POD_UID", "metadata.uid"),
        )
    ],
}
PORTS = {"node": [{"name": "node", "containerPort": 9580}], "reporter": [{"name": "reporter", "containerPort": 9581}]}
RULES = {
    ("ClusterRole", ""): {
        ("", "nodes", ""): {"get", "patch"},
        ("", "nodes/status", ""): {"patch"},
        ("", "events", ""): {"create"},
    },
    ("Role", names.NAMESPACE): {
        ("coordination.k8s.io", "leases", ""): {"get", "list", "watch", "create", "update"},
        ("apps", "daemonsets", "flox-node"): {"get"},
    },
}


def differences(pod: Object) -> Iterator[str]:
    """In what the pod's privileges are not those above."""
    yield from (f"the pod has {field}" for field in pod.keys() - POD_FIELDS)
    if pod["automountServiceAccountToken"] or pod["securityContext"] != {"fsGroup": 65532}:
        yield "the pod's token or security context"
    if {volume["name"]: {k: v for k, v in volume.items() if k != "name"} for volume in pod["volumes"]} != VOLUMES:
        yield "the pod's volumes"
    if [container["name"] for container in pod["containers"]] != ["node", "reporter"]:
        yield "the pod's containers"
    for container in pod["containers"]:
        yield from (f"{container['name']}: {what}" for what in _of_container(container))


def _of_container(container: Object) -> Iterator[str]:
    name = container["name"]
    yield from container.keys() - CONTAINER_FIELDS
    mounts = {mount["name"]: (mount["mountPath"], not mount.get("readOnly")) for mount in container["volumeMounts"]}
    if mounts != MOUNTS.get(name) or len(mounts) != len(container["volumeMounts"]):
        yield "volumeMounts"
    if container["securityContext"] != SECURITY.get(name):
        yield "securityContext"
    if container.get("env", []) != ENVIRONMENT.get(name):
        yield "env"
    if container["ports"] != PORTS.get(name):
        yield "ports"


@functools.cache
def rendered(folder: str) -> list[Object]:
    return objects(DAEMONSET / folder)


def of(folder: str, *kinds: str) -> list[Object]:
    return [item for item in copy.deepcopy(rendered(folder)) if item["kind"] in kinds]


def pod_of(folder: str) -> Object:
    (daemonset,) = of(folder, "DaemonSet")
    pod: Object = daemonset["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "overlays/baked"])
def test_the_pod_has_the_privileges_of_the_design_and_no_more(folder: str) -> None:
    assert list(differences(pod_of(folder))) == []


def test_on_nodes_that_need_no_install_nothing_is_privileged_and_nothing_of_the_host_is_there() -> None:
    pod, base = pod_of("overlays/baked"), pod_of("base")
    (reporter,) = pod["containers"]
    assert reporter["args"] == ["reporter", "--alone"]
    original = base["containers"][1]
    mounts = [mount for mount in original["volumeMounts"] if mount["name"] != "node-state"]
    assert reporter == {**original, "args": reporter["args"], "volumeMounts": mounts}
    assert [volume["name"] for volume in pod["volumes"]] == ["settings", "reporter-state", "api-access"]
    assert pod["nodeSelector"][names.ENABLED] == "true"


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_overlay_leaves_the_permissions_as_they_are(folder: str) -> None:
    adaptable = {"ConfigMap", "DaemonSet"}
    kinds = {item["kind"] for item in rendered("base")} - adaptable
    assert of(folder, *kinds) == of("base", *kinds)
    assert {item["kind"] for item in rendered(folder)} == kinds | adaptable


def _node(pod: Object) -> Any:
    return pod["containers"][0]


def _reporter(pod: Object) -> Any:
    return pod["containers"][1]


def _mount(container: Object, volume: str, path: str = "/more", **more: object) -> None:
    container["volumeMounts"].append({"name": volume, "mountPath": path, **more})


def _volume(pod: Object, container: Object, **source: object) -> None:
    pod["volumes"].append({"name": "more", **source})
    _mount(container, "more")


TOKEN = {"serviceAccountToken": {"path": "token"}}
GAINS: dict[str, Callable[[Any], object]] = {
    "the pod gains hostPID": lambda pod: pod.update(hostPID=True),
    "the pod gains hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "the pod gains hostIPC": lambda pod: pod.update(hostIPC=True),
    "the containers see each other's processes": lambda pod: pod.update(shareProcessNamespace=True),
    "the pod gains an init container": lambda pod: pod.update(initContainers=[_node(pod)]),
    "the pod gains a third container": lambda pod: pod["containers"].append({**_node(pod), "name": "more"}),
    "the kubelet mounts the token into both": lambda pod: pod.update(automountServiceAccountToken=True),
    "the pod runs with another group": lambda pod: pod["securityContext"].update(supplementalGroups=[0]),
    "node gains the token's volume": lambda pod: _mount(_node(pod), "api-access"),
    "node gains the token's volume under a known name": lambda pod: _node(pod)["volumeMounts"][1].update(
        name="api-access"
    ),
    "node gains a token of its own": lambda pod: _volume(pod, _node(pod), projected={"sources": [TOKEN]}),
    "node gains another hostPath": lambda pod: _volume(pod, _node(pod), hostPath={"path": "/var/lib/kubelet"}),
    "node gains a secret": lambda pod: _volume(pod, _node(pod), secret={"secretName": "key"}),
    "node gains a secret in its environment": lambda pod: _node(pod).update(envFrom=[{"secretRef": {"name": "key"}}]),
    "node gains names of the API": lambda pod: _node(pod).update(env=_reporter(pod)["env"]),
    "node gains a port of the host": lambda pod: _node(pod)["ports"][0].update(hostPort=9580),
    "node may write what reporter says": lambda pod: _node(pod)["volumeMounts"][3].update(readOnly=False),
    "node may write to its own image": lambda pod: _node(pod)["securityContext"].update(readOnlyRootFilesystem=False),
    "the volume of a token gains another audience": lambda pod: pod["volumes"][5]["projected"]["sources"][0][
        "serviceAccountToken"
    ].update(audience="vault"),
    "a volume that both have becomes one of the host": lambda pod: pod["volumes"][2].update(hostPath={"path": "/run"}),
    "reporter becomes privileged": lambda pod: _reporter(pod)["securityContext"].update(privileged=True),
    "reporter gains a capability": lambda pod: _reporter(pod)["securityContext"]["capabilities"].update(add=["CHOWN"]),
    "reporter keeps capabilities": lambda pod: _reporter(pod)["securityContext"].pop("capabilities"),
    "reporter becomes root": lambda pod: _reporter(pod)["securityContext"].update(runAsUser=0, runAsNonRoot=False),
    "reporter may be root": lambda pod: _reporter(pod)["securityContext"].pop("runAsNonRoot"),
    "reporter may become more": lambda pod: _reporter(pod)["securityContext"].update(allowPrivilegeEscalation=True),
    "reporter loses its seccomp profile": lambda pod: _reporter(pod)["securityContext"].pop("seccompProfile"),
    "reporter sees the node": lambda pod: _mount(_reporter(pod), "host"),
    "reporter sees a folder of the node": lambda pod: _volume(pod, _reporter(pod), hostPath={"path": "/run"}),
    "reporter may write what node says": lambda pod: _reporter(pod)["volumeMounts"][1].pop("readOnly"),
    "reporter gains a device": lambda pod: _reporter(pod).update(volumeDevices=[{"name": "more", "devicePath": "/d"}]),
    "reporter runs something at its end": lambda pod: _reporter(pod).update(lifecycle={}),
}


@pytest.mark.parametrize("gain", GAINS)
def test_it_is_noticed_when(gain: str) -> None:
    pod = pod_of("base")
    GAINS[gain](pod)
    assert list(differences(pod))


def test_the_service_account_may_do_what_the_reporter_needs_and_no_more() -> None:
    roles: dict[tuple[str, str], dict[tuple[str, str, str], set[str]]] = {}
    for role in of("base", "ClusterRole", "Role"):
        rules = roles[role["kind"], role["metadata"].get("namespace", "")] = {}
        for rule in role["rules"]:
            assert rule.keys() <= {"apiGroups", "resources", "resourceNames", "verbs"}
            (group,), (resource,), (name,) = rule["apiGroups"], rule["resources"], rule.get("resourceNames", [""])
            rules[group, resource, name] = set(rule["verbs"])
    assert roles == RULES


def test_each_role_is_bound_to_the_one_service_account_and_there_are_no_others() -> None:
    (account,) = of("base", "ServiceAccount")
    assert (account["metadata"]["namespace"], account["metadata"]["name"]) == (names.NAMESPACE, names.NAME)
    assert account["automountServiceAccountToken"] is False
    bindings = of("base", "ClusterRoleBinding", "RoleBinding")
    assert [(item["roleRef"]["kind"], item["metadata"].get("namespace", "")) for item in bindings] == list(RULES)
    for binding in bindings:
        assert binding["roleRef"]["name"] == names.NAME
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": names.NAME, "namespace": names.NAMESPACE}]


def test_every_resource_that_may_be_written_has_a_policy_that_is_in_force() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in of("base", "ValidatingAdmissionPolicy")}
    bound = {item["spec"]["policyName"]: item["spec"] for item in of("base", "ValidatingAdmissionPolicyBinding")}
    covered = set()

    for name, policy in policies.items():
        assert bound[name] == {"policyName": name, "validationActions": ["Deny"]}  # everywhere, without exceptions
        assert policy["failurePolicy"] == "Fail"
        assert [condition["expression"] for condition in policy["matchConditions"]] == [
            f'request.userInfo.username == "{USER}"'
        ]
        (rule,) = policy["matchConstraints"].pop("resourceRules")
        assert policy["matchConstraints"] == {}
        assert rule["operations"] == ["*"]
        covered |= {(rule["apiGroups"][0], resource) for resource in rule["resources"]}
        assert {validation["reason"] for validation in policy["validations"]} == {"Forbidden"}

    written = {
        (group, resource)
        for role in RULES.values()
        for (group, resource, _), verbs in role.items()
        if verbs - {"get", "list", "watch"}
    }
    assert {(group, resource.replace("nodes/status", "nodes/*")) for group, resource in written} == covered


def test_the_policies_speak_of_the_names_that_the_code_has() -> None:
    text = (DAEMONSET / "base/admission.yaml").read_text()
    for name in (names.CONDITION, names.NAMESPACE):
        assert f'"{name}"' in text
    assert f'"^({STARTUP_TAINT.pattern})$"' in text
    assert all(STARTUP_TAINT.fullmatch(key) for key in (*STARTUP_TAINTS, names.NOT_READY))
    assert f'startsWith("{names.PREFIX}")' in text
    assert f'matches("^{names.SLOT_PREFIX}[0-9]+$")' in text
    assert all(happening.startswith("Flox") for happening in names.Happening)
