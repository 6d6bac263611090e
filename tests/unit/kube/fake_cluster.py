"""What a DaemonSet's controller and our agent would do to the objects of a `FakeApi`, one step at a time."""

from __future__ import annotations

import json
from typing import Any

from flox_node.kube.api import Object
from flox_node.kube.names import CONDITION, ENABLED, NAME, NAMESPACE
from flox_node.kube.resources import DAEMON_SETS, NODES, PODS, REVISIONS
from flox_node.kube.rollout import mode_of, selects
from tests.unit.kube.fake_api import FakeApi

DAEMON_SET = DAEMON_SETS.path(NAME, namespace=NAMESPACE)
THEN = "2026-01-01T00:00:00Z"


def node(name: str, *, ready: bool = True, labels: dict[str, str] | None = None, **condition: str) -> Object:
    """A node; `condition` are fields of ours."""
    conditions: list[Object] = [
        {
            "type": "Ready",
            "status": "True" if ready else "Unknown",
            "message": "" if ready else "Kubelet stopped posting.",
        }
    ]
    if condition:
        conditions.append({"type": CONDITION, "lastTransitionTime": THEN, **condition})
    return {
        "metadata": {
            "name": name,
            "uid": f"node-{name}",
            "creationTimestamp": THEN,
            "labels": {"kubernetes.io/os": "linux", **(labels or {})},
        },
        "spec": {},
        "status": {"conditions": conditions, "nodeInfo": {"containerRuntimeVersion": "containerd://2.1.4"}},
    }


def pod(name: str, on: str, *, ready: bool = True, revision: str = "r1", owner: str = "", **status: Any) -> Object:
    """A pod of the DaemonSet."""
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"pod-{name}",
            "creationTimestamp": THEN,
            "labels": {"controller-revision-hash": revision},
            "ownerReferences": [{"uid": owner}] if owner else [],
        },
        "spec": {"nodeName": on, "containers": [{"name": "node"}, {"name": "reporter"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}], **status},
    }


def flox_pod(
    name: str, on: str = "", *, phase: str = "Running", runtime_class: str | None = "flox", **rest: Any
) -> Object:
    """A pod of somebody, by default one that is right in every respect."""
    annotations = rest.pop("annotations", {"flox.dev/environment": "demo/hello"})
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"pod-{name}",
            "annotations": annotations,
            "creationTimestamp": THEN,
        },
        "spec": {"nodeName": on, "runtimeClassName": runtime_class, "containers": [{"name": "main", "env": []}]},
        "status": {"phase": phase, **rest},
    }


class FakeCluster(FakeApi):
    """Nodes that become what the DaemonSet wants, one each `step`. `refusing` ones do so, `stuck` ones never end."""

    def __init__(self, *names: str, refusing: tuple[str, ...] = (), stuck: tuple[str, ...] = (), **given: Any) -> None:
        super().__init__(**given)
        self.refusing, self.stuck = refusing, set(stuck)
        self.now = 0.0
        self.put("/api/v1/namespaces/default", {"kind": "Namespace", "metadata": {"name": "default"}})
        for name in names:
            self.put(NODES.path(name), node(name))

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.step()

    def step(self) -> None:
        """Replace one pod that is not of the newest revision, and settle its node."""
        daemon_set = self.objects.get(DAEMON_SET)
        if daemon_set is None:
            return
        daemon_set["status"] = {"observedGeneration": daemon_set["metadata"]["generation"]}
        newest = self._revision(daemon_set)
        spec = daemon_set["spec"]["template"]["spec"]
        nodes = [item for path, item in sorted(self.objects.items()) if path.startswith(NODES.path() + "/")]
        selected = [item for item in nodes if selects(spec, item)]
        daemon_set["status"] |= {"desiredNumberScheduled": len(selected), "currentNumberScheduled": len(selected)}
        for item in selected:
            name = item["metadata"]["name"]
            path = PODS.path(f"flox-node-{name}", namespace=NAMESPACE)
            up = item["status"]["conditions"][0]["status"] == "True"
            old = self.objects.get(path)
            if up and (old is None or old["metadata"]["labels"]["controller-revision-hash"] != newest):
                settled = name not in self.stuck
                made = pod(
                    f"flox-node-{name}", name, ready=settled, revision=newest, owner=daemon_set["metadata"]["uid"]
                )
                self.put(path, made)
                if settled:
                    self._settle(item, mode_of(daemon_set))
                return

    def _settle(self, item: Object, mode: str) -> None:
        conditions = item["status"]["conditions"]
        conditions[:] = [each for each in conditions if each["type"] != CONDITION]
        refuses = item["metadata"]["name"] in self.refusing
        if mode == "uninstall":
            item["metadata"]["labels"].pop(ENABLED, None)
        elif refuses:
            text = {"reason": "Refused", "message": "Bottlerocket renders containerd's configuration."}
            conditions.append({"type": CONDITION, "status": "False", "lastTransitionTime": THEN, **text})
        else:
            item["metadata"]["labels"][ENABLED] = "true"
            text = {"reason": "Installed", "message": "The handler flox is live."}
            conditions.append({"type": CONDITION, "status": "True", "lastTransitionTime": THEN, **text})

    def _revision(self, daemon_set: Object) -> str:
        template = json.dumps(daemon_set["spec"]["template"], sort_keys=True)
        found = [item for path, item in self.objects.items() if path.startswith(REVISIONS.path(namespace=NAMESPACE))]
        last = max((item["revision"] for item in found), default=0)
        for item in found:
            if item["data"] == template:
                item["revision"] = item["revision"] if item["revision"] == last else last + 1
                return str(item["metadata"]["name"])
        name = f"r{len(found) + 1}"
        owner = [{"uid": daemon_set["metadata"]["uid"]}]
        metadata = {"name": name, "labels": {"controller-revision-hash": name}, "ownerReferences": owner}
        path = REVISIONS.path(name, namespace=NAMESPACE)
        self.put(path, {"metadata": metadata, "data": template, "revision": last + 1})
        return name
