"""The support bundle of a cluster: our objects, what nodes and pods say of themselves, logs and events.

No Secret is read, of other people's pods only what concerns us is kept, and texts that look like secrets are taken out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from flox_node import __version__
from flox_node.kube.api import Api, ApiError, Object
from flox_node.kube.doctor import CHECKS
from flox_node.kube.doctor.facts import Facts, gather
from flox_node.kube.manifests import Options, objects
from flox_node.kube.names import NAME, NAMESPACE, PREFIX
from flox_node.kube.resources import EVENTS, LEASES, PODS, REVISIONS, find, listed, path_of
from flox_node.kube.rollout import node_of
from flox_node.redact import Redactor
from flox_node.support import Bundle, bundle

_PODS_WITH_LOGS = 50
_LOG_BYTES = 256 << 10
_LOG_LINES = 2000
_NODE_SPEC = ("taints", "unschedulable")
_NODE_STATUS = ("conditions", "nodeInfo", "runtimeHandlers")


class LogApi(Api, Protocol):
    """An API server that also gives texts."""

    def text(self, path: str, *, query: Mapping[str, str] | None = None, timeout: float = 30.0) -> str:
        """The text at a path; ApiError if there is none."""
        ...


def collect(api: LogApi) -> Bundle:
    """Read the cluster and pack it. Writes nothing there."""
    now = datetime.now(UTC)
    facts = gather(api, now)
    members: dict[str, Callable[[], Any]] = {
        "versions.json": lambda: {"flox-node": __version__, "server": facts.version, "time": now.isoformat()},
        "status.json": lambda: None if facts.rollout is None else dataclasses.asdict(facts.rollout),
        "doctor.json": lambda: [{"id": check.id, **dataclasses.asdict(check.decide(facts))} for check in CHECKS],
        "objects.json": lambda: _objects(api),
        "runtime-classes.json": lambda: list(map(plain, facts.runtime_classes)),
        "nodes.json": lambda: list(map(node, facts.nodes)),
        "pods.json": lambda: list(map(plain, facts.pods)),
        "flox-pods.json": lambda: list(map(flox_pod, facts.flox_pods)),
        "revisions.json": lambda: list(map(plain, listed(api, REVISIONS.path(namespace=NAMESPACE)))),
        "leases.json": lambda: list(map(plain, listed(api, LEASES.path(namespace=NAMESPACE)))),
        "events/namespace.json": lambda: list(map(plain, listed(api, EVENTS.path(namespace=NAMESPACE)))),
        "events/nodes.json": lambda: list(map(plain, listed(api, EVENTS.path(), {"fieldSelector": f"source={NAME}"}))),
        "events/flox-pods.json": lambda: list(map(plain, facts.events)),
    }
    for pod in with_logs(facts):
        for container in pod["spec"]["containers"]:
            for previous in (False, True):
                name = f"logs/{node_of(pod)}/{container['name']}{'.previous' if previous else ''}.txt"
                members[name] = _log(api, pod["metadata"]["name"], container["name"], previous=previous)
    return bundle(members, Redactor())


def with_logs(facts: Facts) -> list[Object]:
    """The pods whose logs are packed: in a large cluster those of nodes that are not settled come first."""
    settled = {row.name for row in facts.rollout.nodes if row.state.settled} if facts.rollout else set()
    return sorted(facts.pods, key=lambda pod: (node_of(pod) in settled, node_of(pod)))[:_PODS_WITH_LOGS]


def plain(found: Object) -> Object:
    """An object without the API server's bookkeeping, and without the copy of itself that kubectl keeps in it."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if not key.startswith("kubectl.kubernetes.io/last-")}
    return {**found, "metadata": {**metadata, "annotations": kept}}


def node(found: Object) -> Object:
    """What of a node concerns us. Other tools keep their own things in a node's annotations."""
    return {
        "name": found["metadata"]["name"],
        "created": found["metadata"].get("creationTimestamp"),
        "labels": found["metadata"].get("labels"),
        "annotations": _ours(found),
        **{key: found["spec"].get(key) for key in _NODE_SPEC},
        **{key: found.get("status", {}).get(key) for key in _NODE_STATUS},
    }


def flox_pod(found: Object) -> Object:
    """What of somebody's pod concerns us: neither its commands nor its environment variables do."""
    return {
        "namespace": found["metadata"].get("namespace"),
        "name": found["metadata"]["name"],
        "annotations": _ours(found),
        "node": found["spec"].get("nodeName"),
        "runtimeClassName": found["spec"].get("runtimeClassName"),
        "status": found.get("status"),
    }


def _ours(found: Object) -> dict[str, str]:
    annotations = found["metadata"].get("annotations") or {}
    return {key: value for key, value in annotations.items() if key.startswith(PREFIX)}


def _objects(api: Api) -> list[Object]:
    found = []
    for wanted in objects(Options(pod_monitor=True)):
        live = find(api, path_of(wanted))
        found.append({"missing": f"{wanted['kind']} {wanted['metadata']['name']}"} if live is None else plain(live))
    return found


def _log(api: LogApi, pod: str, container: str, *, previous: bool) -> Callable[[], str]:
    query = {"container": container, "tailLines": str(_LOG_LINES), "limitBytes": str(_LOG_BYTES), "timestamps": "true"}
    if previous:
        query["previous"] = "true"

    def read() -> str:
        try:
            return api.text(f"{PODS.path(pod, namespace=NAMESPACE)}/log", query=query)
        except ApiError as error:
            if previous and error.status == 400:
                return ""  # it never ended
            raise

    return read
