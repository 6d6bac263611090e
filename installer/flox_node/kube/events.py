"""Events about a node, and about the pods on it."""

from __future__ import annotations

from flox_node.kube.api import Object
from flox_node.kube.names import NAME, Happening, PodHappening

NAMESPACE = "default"
"""Where the API server wants events about objects without a namespace."""


def about_node(node: Object, reason: Happening, message: str, *, number: int, warning: bool, now: str) -> Object:
    """An Event of core/v1. `number` makes its name its own: a second one is refused as AlreadyExists."""
    metadata = node["metadata"]
    name = metadata["name"]
    about = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": metadata.get("uid", "")}
    return _event(
        NAMESPACE, about, reason, message, number=number, kind="Warning" if warning else "Normal", node=name, now=now
    )


def about_pod(
    namespace: str, pod: str, uid: str, reason: PodHappening, message: str, *, number: int, node: str, now: str
) -> Object:
    """An Event of core/v1 about a pod on a node. A warning: others are not shown to whoever waits for a CI job."""
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid}
    return _event(namespace, about, reason, message, number=number, kind="Warning", node=node, now=now)


def _event(
    namespace: str, about: Object, reason: str, message: str, *, number: int, kind: str, node: str, now: str
) -> Object:
    name = about["name"][:200].rstrip(".-")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.flox-node.{number:x}", "namespace": namespace},
        "involvedObject": about,
        "reason": str(reason),
        "message": message,
        "type": kind,
        "source": {"component": NAME, "host": node},
        "reportingComponent": NAME,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
