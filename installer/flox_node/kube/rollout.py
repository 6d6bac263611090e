"""How far each node is, from what the API server says of nodes, pods and the DaemonSet. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flox_node.kube.api import Object
from flox_node.kube.names import CONDITION, PLATFORM_ANNOTATION, VERSION_ANNOTATIONS, Reason

_HASH = "controller-revision-hash"
_MODE = "--mode="
_ON_ITS_WAY = (Reason.WAITING, Reason.INSTALLING, Reason.UNINSTALLING, Reason.BUSY, Reason.NOT_LIVE)


class State(StrEnum):
    """Where a node stands."""

    READY = "ready"  # Flox pods run here
    REFUSED = "refused"  # it cannot become a Flox node, for good; nothing was written on it
    REVERTED = "reverted"  # uninstalled
    WAITING = "waiting"  # the rollout has not come to it yet
    WORKING = "working"
    FAILED = "failed"  # it is tried again, but somebody should look
    DOWN = "down"  # its kubelet does not answer

    @property
    def settled(self) -> bool:
        """Whether nothing more has to happen."""
        return self in (State.READY, State.REFUSED, State.REVERTED)


@dataclass(frozen=True)
class NodeRow:
    """A node, as tables show it. `reason` is one of `names.Reason` or of Kubernetes' own; `since` is RFC 3339."""

    name: str
    state: State
    reason: str = ""
    message: str = ""
    since: str = ""
    platform: str = ""
    containerd: str = ""
    payload: str = ""
    shim: str = ""
    flox: str = ""


@dataclass(frozen=True)
class Rollout:
    """The whole: what is installed, and the nodes that the DaemonSet selects, by name."""

    mode: str
    image: str
    nodes: tuple[NodeRow, ...]

    @property
    def state(self) -> State:
        """The state of the node that is furthest from its end: `ready` and the like only when every node is settled."""
        if not self.nodes:
            return State.READY if self.mode == "install" else State.REVERTED
        order = (State.FAILED, State.DOWN, State.WORKING, State.WAITING, State.READY, State.REVERTED, State.REFUSED)
        return min((row.state for row in self.nodes), key=order.index)

    def open(self, *, leaving: Iterable[str] = ()) -> list[NodeRow]:
        """The nodes that are not settled, without those of `leaving` that are down."""
        left = set(leaving)
        return [
            row for row in self.nodes if not row.state.settled and not (row.state is State.DOWN and row.name in left)
        ]


def rollout(
    daemon_set: Object, revisions: Iterable[Object], nodes: Iterable[Object], pods: Iterable[Object]
) -> Rollout:
    """Put together what was read."""
    mode = mode_of(daemon_set)
    spec = daemon_set["spec"]["template"]["spec"]
    newest = newest_revision(daemon_set, revisions)
    by_node: dict[str, Object] = {}
    for pod in pods:
        if node_of(pod) not in by_node or not pod["metadata"].get("deletionTimestamp"):
            by_node[node_of(pod)] = pod
    rows = (row(node, by_node.get(node["metadata"]["name"]), newest, mode) for node in nodes if selects(spec, node))
    image = str(spec["containers"][0].get("image", ""))
    return Rollout(mode, image, tuple(sorted(rows, key=lambda each: each.name)))


def row(node: Object, pod: Object | None, newest: str, mode: str) -> NodeRow:
    """One node. newest: the revision that a pod of the present DaemonSet carries."""
    name = node["metadata"]["name"]
    annotations = node["metadata"].get("annotations") or {}
    runtime = node.get("status", {}).get("nodeInfo", {}).get("containerRuntimeVersion", "")
    versions = {what: str(annotations.get(key, "")) for what, key in VERSION_ANNOTATIONS.items()}
    versions["containerd"] = versions["containerd"] or runtime.removeprefix("containerd://")
    state, reason, message, since = _standing(node, pod, newest, mode)
    return NodeRow(
        name, state, reason, message, since, platform=str(annotations.get(PLATFORM_ANNOTATION, "")), **versions
    )


def _standing(node: Object, pod: Object | None, newest: str, mode: str) -> tuple[State, str, str, str]:
    kubelet, ours = condition(node, "Ready"), condition(node, CONDITION)
    reason, message, since = (str(ours.get(key, "")) for key in ("reason", "message", "lastTransitionTime"))
    if kubelet.get("status") != "True":
        why = str(kubelet.get("message") or "The node's kubelet does not answer.")
        return State.DOWN, "NodeNotReady", why, str(kubelet.get("lastTransitionTime", ""))
    if pod is None or pod["metadata"].get("deletionTimestamp"):
        return State.WAITING, "NoPod", "flox-node's pod is not there yet.", ""
    started = str(pod["metadata"].get("creationTimestamp", ""))
    if pod["metadata"].get("labels", {}).get(_HASH) != newest:
        return State.WAITING, "OldPod", "The pod of the former version still runs.", started
    if trouble := pod_trouble(pod):
        return State.FAILED, *trouble, started
    if condition(pod, "Ready").get("status") == "True":
        if mode == "uninstall":
            return State.REVERTED, str(Reason.UNINSTALLED), "The node is as before.", started
        if ours.get("status") == "True":
            return State.READY, reason, message, since
        if reason == Reason.REFUSED:
            return State.REFUSED, reason, message, since
    if not reason or reason == Reason.INSTALLED:
        return State.WORKING, "Starting", "flox-node's pod looks at the node.", started
    return State.WORKING if reason in _ON_ITS_WAY else State.FAILED, reason, message, since


def mode_of(daemon_set: Object) -> str:
    """What the DaemonSet does to its nodes: "install" or "uninstall"."""
    for container in daemon_set["spec"]["template"]["spec"]["containers"]:
        for argument in container.get("args") or []:
            if argument.startswith(_MODE):
                return str(argument.removeprefix(_MODE))
    return "install"


def reverts_nodes(daemon_set: Object) -> bool:
    """Whether it works on nodes: where the image or the bootstrap did that, the reporter is alone (overlay `baked`)."""
    containers = daemon_set["spec"]["template"]["spec"]["containers"]
    return not any("--alone" in (container.get("args") or []) for container in containers)


def has_mode(arguments: Sequence[str]) -> bool:
    """Whether these are the arguments of a container of ours; somebody may have added others."""
    return any(argument.startswith(_MODE) for argument in arguments)


def with_mode(arguments: Sequence[str], mode: str) -> list[str]:
    """The arguments of a container of ours with another mode; whatever else somebody added to them stays."""
    return [*(argument for argument in arguments if not argument.startswith(_MODE)), f"{_MODE}{mode}"]


def newest_revision(daemon_set: Object, revisions: Iterable[Object]) -> str:
    """The revision of the present pod template; "" while the controller has not seen it yet."""
    metadata = daemon_set["metadata"]
    if daemon_set.get("status", {}).get("observedGeneration", 0) < metadata.get("generation", 1):
        return ""
    owned = [revision for revision in revisions if owned_by(daemon_set, revision)]
    newest = max(owned, key=lambda revision: int(revision["revision"]), default=None)
    return "" if newest is None else str(newest["metadata"].get("labels", {}).get(_HASH, ""))


def owned_by(daemon_set: Object, object: Object) -> bool:
    """Whether the DaemonSet made it."""
    owners = object["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == daemon_set["metadata"]["uid"] for owner in owners)


def selects(pod_spec: Object, node: Object) -> bool:
    """Whether a pod of this specification is meant for the node (taints aside: ours tolerates them all)."""
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    affinity = pod_spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms")
    return terms is None or any(_matches(term, node["metadata"]["name"], labels) for term in terms)


def _matches(term: Object, name: str, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False  # an empty term selects nothing
    return all(_holds(each, labels) for each in expressions) and all(
        _holds(each, {"metadata.name": name}) for each in fields
    )


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return _is_number(value) and int(str(value)) > int(values[0])
        case "Lt":
            return _is_number(value) and int(str(value)) < int(values[0])
    return False


def _is_number(value: str | None) -> bool:
    return re.fullmatch(r"-?[0-9]+", value or "") is not None


def node_of(pod: Object) -> str:
    """The node of a pod of a DaemonSet, also while it is not bound yet."""
    spec: dict[str, Any] = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def pod_trouble(pod: Object) -> tuple[str, str] | None:
    """Why a pod does not come to run: reason and message, as Kubernetes says them. None for one that runs, or may."""
    status = pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in (None, "ContainerCreating", "PodInitializing"):
            continue
        ended = container.get("lastState", {}).get("terminated", {})
        last = f"the last run ended with {ended.get('exitCode')} ({ended.get('reason')})" if ended else ""
        texts = [f"container {container['name']}", str(ended.get("message") or "").strip(), last]
        texts.insert(1, str(waiting.get("message") or ""))
        return str(waiting["reason"]), ": ".join(text for text in texts if text)
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason") or "Unschedulable"), str(scheduled.get("message", ""))
    if status.get("phase") == "Failed":
        return str(status.get("reason") or "PodFailed"), str(status.get("message") or "The pod failed.")
    return None


def condition(object: Object, kind: str) -> Object:
    """A condition of a node or a pod; empty if it has none of this type."""
    conditions = object.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})
