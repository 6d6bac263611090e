"""What is installed: the API server's version, the DaemonSet and its pods, policies, the RuntimeClass."""

from __future__ import annotations

from collections import defaultdict

from flox_node.findings import State, Verdict, ok, problem, skipped, told, warning
from flox_node.kube.doctor.facts import Check, Facts, named
from flox_node.kube.install import too_old
from flox_node.kube.names import ENABLED, RUNTIME_CLASS
from flox_node.kube.rollout import mode_of, node_of, pod_trouble

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")


def decide_version(facts: Facts) -> Verdict:
    """Older ones do not tell an admission policy whose token it is."""
    reason = too_old(facts.version)
    return problem(reason) if reason else ok(str(facts.version.get("gitVersion", "")))


def decide_daemon_set(facts: Facts) -> Verdict:
    """It may be on its way out."""
    if facts.daemon_set is None:
        return problem("there is no DaemonSet flox-node in the namespace flox-node")
    if mode_of(facts.daemon_set) == "uninstall":
        return warning("flox-node is being uninstalled")
    return ok(facts.rollout.image if facts.rollout else "")


def decide_created(facts: Facts) -> Verdict:
    """What keeps the controller from making pods is told in events about the DaemonSet."""
    if facts.daemon_set is None:
        return skipped("flox-node is not installed")
    status = facts.daemon_set.get("status", {})
    missing = status.get("desiredNumberScheduled", 0) - status.get("currentNumberScheduled", 0)
    if missing <= 0:
        return ok()
    last = facts.events_about(facts.daemon_set["metadata"]["uid"])[-1:]
    return problem("; ".join([f"{missing} pods of the DaemonSet are missing", *last]))


def _troubles(facts: Facts, *, image: bool) -> Verdict:
    """The pods that do not run, by their cause."""
    if facts.daemon_set is None:
        return skipped("flox-node is not installed")
    nodes = defaultdict(list)
    for pod in facts.pods:
        trouble = pod_trouble(pod)
        if trouble and (trouble[0] in _IMAGE) is image:
            nodes[trouble].append(node_of(pod))
    return told([f"{reason} on {named(sorted(names))}: {message}" for (reason, message), names in nodes.items()])


def decide_images(facts: Facts) -> Verdict:
    """The nodes get the image."""
    return _troubles(facts, image=True)


def decide_running(facts: Facts) -> Verdict:
    """The pods are scheduled, start, and go on."""
    return _troubles(facts, image=False)


def decide_policies(facts: Facts) -> Verdict:
    """They are there, deny, and let nothing through when they cannot be evaluated."""
    if facts.daemon_set is None:
        return skipped("flox-node is not installed")
    causes, others = [], []
    for wanted, live in facts.policies:
        name = f"{wanted['kind']} {wanted['metadata']['name']}"
        if live is None:
            causes.append(f"{name} is missing")
        elif wanted["kind"].endswith("Binding"):
            if "Deny" not in live["spec"].get("validationActions", []) or live["spec"].get("matchResources"):
                causes.append(f"{name} does not deny all that its policy refuses")
        else:
            if live["spec"].get("failurePolicy", "Fail") != "Fail":
                causes.append(f"{name} lets through what it cannot evaluate")
            warned = live.get("status", {}).get("typeChecking", {}).get("expressionWarnings") or []
            causes += [f"{name}: {each.get('warning')}" for each in warned]
            if live["spec"].get("validations") != wanted["spec"]["validations"]:
                others.append(f"{name} has other rules than this version of flox-node")
    return told(causes) if causes else told(others, state=State.WARNING)


def decide_runtime_class(facts: Facts) -> Verdict:
    """It leads to our handler, on nodes that have it."""
    if facts.daemon_set is None:
        return skipped("flox-node is not installed")
    found = next((each for each in facts.runtime_classes if each["metadata"]["name"] == RUNTIME_CLASS), None)
    if found is None:
        return problem(f"there is no RuntimeClass {RUNTIME_CLASS}")
    causes = []
    if found["handler"] != RUNTIME_CLASS:
        causes.append(f"its handler is {found['handler']}")
    selector = (found.get("scheduling") or {}).get("nodeSelector") or {}
    if selector.get(ENABLED) != "true":
        causes.append(f"its nodeSelector is {selector}: its pods may come to nodes without the handler")
    return told(causes)


def decide_foreign_classes(facts: Facts) -> Verdict:
    """Others that resemble ours."""
    classes = {each["metadata"]["name"]: each["handler"] for each in facts.runtime_classes}
    causes = [
        f"RuntimeClass {name} has the handler {handler}"
        for name, handler in classes.items()
        if name != RUNTIME_CLASS and RUNTIME_CLASS in f"{name} {handler}"
    ]
    return told(causes, state=State.WARNING)


CHECKS: tuple[Check, ...] = (
    Check(
        "kubernetes-version",
        "the API server is one that can confine the pods",
        "upgrade the control plane",
        decide_version,
    ),
    Check(
        "daemon-set",
        "the DaemonSet is there, and installs",
        "`flox-node cluster install`; where it is being uninstalled, `flox-node cluster uninstall` ends that",
        decide_daemon_set,
    ),
    Check(
        "pods-created",
        "every selected node has a pod of the DaemonSet",
        "the event says who refuses: the namespace flox-node must keep its label "
        "pod-security.kubernetes.io/enforce=privileged, and quotas and admission webhooks must let its pods through",
        decide_created,
    ),
    Check(
        "image",
        "the nodes get the DaemonSet's image",
        "`flox-node cluster upgrade --image REGISTRY/flox-node:VERSION` with an image that these nodes can pull; "
        "credentials belong to the nodes or to imagePullSecrets of the service account flox-node",
        decide_images,
    ),
    Check(
        "pods-run",
        "the DaemonSet's pods run",
        "`kubectl --namespace flox-node logs POD --all-containers --previous` shows why; `flox-node cluster collect` "
        "packs the logs",
        decide_running,
    ),
    Check(
        "admission-policies",
        "the admission policies that confine the pods' token are in force",
        "`flox-node cluster install --force-conflicts` brings them back; ask who changed them",
        decide_policies,
    ),
    Check(
        "runtime-class",
        "the RuntimeClass flox leads to the handler flox on Flox nodes",
        "`flox-node cluster install --force-conflicts` brings it back; ask who changed it",
        decide_runtime_class,
    ),
    Check(
        "foreign-runtime-classes",
        "no other RuntimeClass looks like ours",
        "delete it, or see that its pods only come to nodes with its handler; flox-node's is named flox",
        decide_foreign_classes,
    ),
)
