"""What the checks look at, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from flox_node.findings import Verdict
from flox_node.kube.api import Api, Object
from flox_node.kube.manifests import objects
from flox_node.kube.names import NAME, NAMESPACE, PREFIX, RUNTIME_CLASS
from flox_node.kube.resources import (
    DAEMON_SETS,
    EVENTS,
    NODES,
    PODS,
    REVISIONS,
    RUNTIME_CLASSES,
    find,
    listed,
    path_of,
)
from flox_node.kube.rollout import Rollout, owned_by, rollout

_ASKED = 20  # pods whose events are read: one request each
SHOWN = 5  # objects that a finding names


@dataclass(frozen=True)
class Facts:
    """The cluster. `pods` are the DaemonSet's, `flox_pods` all others with our annotations or our RuntimeClass.

    `policies` holds each admission policy and binding of ours as it should be, and as it is (None: not there).
    `events` are the warnings about the DaemonSet, and about Flox pods that do not start, the last one last.
    """

    now: datetime
    version: Object
    daemon_set: Object | None
    rollout: Rollout | None
    pods: Sequence[Object]
    nodes: Sequence[Object]
    runtime_classes: Sequence[Object]
    policies: Sequence[tuple[Object, Object | None]]
    flox_pods: Sequence[Object]
    events: Sequence[Object]

    @property
    def flox_classes(self) -> set[str]:
        """The names of the RuntimeClasses that lead to our handler."""
        return {each["metadata"]["name"] for each in self.runtime_classes if each["handler"] == RUNTIME_CLASS}

    def age_s(self, time: str) -> float:
        """How long ago this was (RFC 3339); 0 if it is not said."""
        return (self.now - datetime.fromisoformat(time)).total_seconds() if time else 0.0

    def events_about(self, uid: str) -> list[str]:
        """The warnings about this object: reason and message."""
        return [f"{each['reason']}: {each['message']}" for each in self.events if each["involvedObject"]["uid"] == uid]


@dataclass(frozen=True)
class Check:
    """One thing to look at. `title` says what, `remedy` what to do when it is not well."""

    id: str
    title: str
    remedy: str
    decide: Callable[[Facts], Verdict]


def gather(api: Api, now: datetime) -> Facts:
    """Read it all. The largest part are the pods of the cluster, page by page."""
    classes = list(listed(api, RUNTIME_CLASSES.path()))
    nodes = list(listed(api, NODES.path()))
    daemon_set = find(api, DAEMON_SETS.path(NAME, namespace=NAMESPACE))
    pods: list[Object] = []
    seen: Rollout | None = None
    if daemon_set is not None:
        revisions = list(listed(api, REVISIONS.path(namespace=NAMESPACE)))
        pods = [pod for pod in listed(api, PODS.path(namespace=NAMESPACE)) if owned_by(daemon_set, pod)]
        seen = rollout(daemon_set, revisions, nodes, pods)
    theirs = [pod for pod in listed(api, PODS.path()) if _concerns_us(pod, classes)]
    pending = [pod["metadata"]["uid"] for pod in theirs if pod["status"].get("phase") == "Pending"]
    asked = [*([daemon_set["metadata"]["uid"]] if daemon_set else []), *pending[:_ASKED]]
    return Facts(
        now=now,
        version=api.request("GET", "/version"),
        daemon_set=daemon_set,
        rollout=seen,
        pods=pods,
        nodes=nodes,
        runtime_classes=classes,
        policies=[(each, find(api, path_of(each))) for each in objects() if each["kind"].startswith("ValidatingAdm")],
        flox_pods=theirs,
        events=[event for uid in asked for event in _warnings(api, uid)],
    )


def named(names: Iterable[str]) -> str:
    """Some of the names, and how many more there are."""
    return ", ".join(some(list(names)))


def some(causes: Sequence[str]) -> list[str]:
    """Some of the causes, and how many more there are."""
    more = len(causes) - SHOWN
    return [*causes[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _concerns_us(pod: Object, classes: Sequence[Object]) -> bool:
    if pod["metadata"].get("namespace") == NAMESPACE:
        return False
    ours = {RUNTIME_CLASS} | {each["metadata"]["name"] for each in classes if each["handler"] == RUNTIME_CLASS}
    annotations = pod["metadata"].get("annotations") or {}
    return pod["spec"].get("runtimeClassName") in ours or any(key.startswith(PREFIX) for key in annotations)


def _warnings(api: Api, uid: str) -> list[Object]:
    found = listed(api, EVENTS.path(), {"fieldSelector": f"type=Warning,involvedObject.uid={uid}"})
    return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
