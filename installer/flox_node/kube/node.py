"""What we write on a Node object: one label, annotations, one taint, one condition. Pure: objects in, patches out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flox_node.kube.api import Object
from flox_node.kube.names import (
    CONDITION,
    ENABLED,
    NOT_READY,
    PLATFORM_ANNOTATION,
    RUNTIME_CLASS,
    VERSION_ANNOTATIONS,
    Reason,
)
from flox_node.settings import STARTUP_TAINT as STARTUP_TAINT_KEY
from flox_node.settings import STARTUP_TAINTS

STARTUP_TAINT = "flox.dev/startup-taint"
"""Annotation: the keys of the startup taints that a node had. It gets them back when it does not work any more."""
_LIFTED = "lifted"  # what earlier versions wrote there, who knew one key


@dataclass(frozen=True)
class Wanted:
    """How a node stands.

    `live`: the handler is served, and nothing is wrong. `down`: the handler is known not to be served, so that no Flox
    pod should come; a typing error in the settings, say, makes a node neither. `gone`: it was uninstalled.
    """

    live: bool
    reason: Reason
    message: str
    down: bool = False
    gone: bool = False
    platform: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def lacks_handler(node: Object) -> bool:
    """Whether the kubelet reports runtime handlers (containerd 2, Kubernetes 1.31), and ours is not among them."""
    handlers = node.get("status", {}).get("runtimeHandlers") or []
    return bool(handlers) and all(handler.get("name") != RUNTIME_CLASS for handler in handlers)


def startup_taints(node: Object) -> list[str]:
    """The keys of the startup taints that this node has, of all that can be ours."""
    taints = node.get("spec", {}).get("taints") or []
    return [key for taint in taints if STARTUP_TAINT_KEY.fullmatch(key := str(taint.get("key")))]


def patch(node: Object, wanted: Wanted, keys: Sequence[str] = STARTUP_TAINTS) -> list[Object]:
    """The JSON patch that brings label, annotations and taints there; empty where all is so already.

    keys: those of the startup taints.

    The label is set once and taken away only when the node is uninstalled: the RuntimeClass puts it into the selector
    of every pod, and a kubelet that restarts rejects running pods that do not match it any more. What is replaced is
    tested, so a change by somebody else in the meantime makes the patch fail instead of being lost.
    """
    metadata = node.get("metadata", {})
    labels: dict[str, str] = metadata.get("labels") or {}
    annotations: dict[str, str] = metadata.get("annotations") or {}
    old_taints: list[Object] = node.get("spec", {}).get("taints") or []
    ours = [str(taint["key"]) for taint in old_taints if taint.get("key") in keys]
    new_taints = [taint for taint in old_taints if taint.get("key") not in keys]
    had = [NOT_READY if key == _LIFTED else key for key in annotations.get(STARTUP_TAINT, "").split(",") if key]
    new_annotations: dict[str, str | None] = {}
    operations: list[Object] = []
    if wanted.gone:
        for name in (*VERSION_ANNOTATIONS.values(), PLATFORM_ANNOTATION, STARTUP_TAINT):
            new_annotations[name] = None
        operations += _entry("labels", labels, ENABLED, None)
    elif wanted.live:
        named = {
            VERSION_ANNOTATIONS[name]: text for name, text in wanted.versions.items() if name in VERSION_ANNOTATIONS
        }
        new_annotations |= {**named, **({PLATFORM_ANNOTATION: wanted.platform} if wanted.platform else {})}
        if ours:
            new_annotations[STARTUP_TAINT] = ",".join(dict.fromkeys((*had, *ours)))
        operations += _entry("labels", labels, ENABLED, "true")
    elif wanted.down and labels.get(ENABLED) == "true" and had:
        new_taints = [
            *old_taints,
            *({"key": key, "effect": "NoSchedule"} for key in had if key in keys and key not in ours),
        ]
    else:
        new_taints = old_taints
    for name, value in new_annotations.items():
        operations += _entry("annotations", annotations, name, value)
    operations = [*_parents(metadata, operations), *operations]
    return operations + _taints(old_taints, new_taints)


def condition(node: Object, wanted: Wanted, now: str) -> Object | None:
    """The strategic merge patch of `nodes/status` that sets (or removes) our condition; None where it says so already.

    now: RFC 3339, for the times in it.
    """
    conditions = node.get("status", {}).get("conditions") or []
    old = next((entry for entry in conditions if entry.get("type") == CONDITION), None)
    if wanted.gone:
        return None if old is None else _status({"$patch": "delete", "type": CONDITION})
    new = condition_of(wanted, now)
    if old is not None:
        if all(old.get(name) == new[name] for name in ("status", "reason", "message")):
            return None
        if old.get("status") == new["status"] and old.get("lastTransitionTime"):
            new["lastTransitionTime"] = old["lastTransitionTime"]
    return _status(new)


def condition_of(wanted: Wanted, now: str) -> Object:
    """Our condition, as of now."""
    return {
        "type": CONDITION,
        "status": "True" if wanted.live else "False",
        "reason": str(wanted.reason),
        "message": wanted.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }


def _status(entry: Object) -> Object:
    return {"status": {"conditions": [entry]}}


def _entry(where: str, old: Mapping[str, str], name: str, value: str | None) -> list[Object]:
    if old.get(name) == value or (value is None and name not in old):
        return []
    path = f"/metadata/{where}/{name.replace('~', '~0').replace('/', '~1')}"
    if value is None:
        return [{"op": "test", "path": path, "value": old[name]}, {"op": "remove", "path": path}]
    if name in old:
        return [{"op": "test", "path": path, "value": old[name]}, {"op": "replace", "path": path, "value": value}]
    return [{"op": "add", "path": path, "value": value}]


def _parents(metadata: Mapping[str, Any], operations: list[Object]) -> list[Object]:
    """A JSON patch adds no key to an object that is not there."""
    needed = {str(operation["path"]).split("/")[2] for operation in operations}
    return [
        {"op": "add", "path": f"/metadata/{where}", "value": {}} for where in sorted(needed) if not metadata.get(where)
    ]


def _taints(old: list[Object], new: list[Object]) -> list[Object]:
    if new == old:
        return []
    if not old:
        return [{"op": "add", "path": "/spec/taints", "value": new}]
    test = {"op": "test", "path": "/spec/taints", "value": old}
    return [test, {"op": "replace", "path": "/spec/taints", "value": new}]
