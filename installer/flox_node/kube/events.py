"""Events about a node."""

from __future__ import annotations

from flox_node.kube.api import Object
from flox_node.kube.names import NAME, Happening

NAMESPACE = "default"
"""Where the API server wants events about objects without a namespace."""


def about_node(node: Object, reason: Happening, message: str, *, number: int, warning: bool, now: str) -> Object:
    """An Event of core/v1. `number` makes its name its own: a second one is refused as AlreadyExists."""
    metadata = node["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.flox-node.{number:x}", "namespace": NAMESPACE},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Node",
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
        },
        "reason": str(reason),
        "message": message,
        "type": "Warning" if warning else "Normal",
        "source": {"component": NAME, "host": metadata["name"]},
        "reportingComponent": NAME,
        "reportingInstance": metadata["name"],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
