"""The product in the cluster: its image on the nodes, its manifest applied, and what becomes of the nodes."""

import contextlib
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tests.bed import flox, image
from tests.bed.processes import PATIENCE_S
from tests.cluster.cluster import Cluster
from tests.cluster.node import Node
from tests.cluster.objects import Object
from tests.doubles.hub import HubData

_PROGRAM = Path(sys.executable).with_name("flox-node")
NAMESPACE = "flox-node"
MANIFEST = Path(__file__).parents[2] / "daemonset/flox-node.yaml"
USER = "system:serviceaccount:flox-node:flox-node"
# What a node's own programs write while pods come and go.
BESIDE = ("var/lib/kubelet", "var/lib/cni", "etc/cni/net.d")


# One FloxHub for the cluster's life: what serves it on a node lives as long as that, whoever installs anew.
_HUBS: weakref.WeakKeyDictionary[Cluster, HubData] = weakref.WeakKeyDictionary()
_SERVED: weakref.WeakSet[Node] = weakref.WeakSet()


def _hub(cluster: Cluster) -> HubData:
    if cluster not in _HUBS:
        _HUBS[cluster] = flox.publish(cluster.control_plane.scope.folder / "hub")
    return _HUBS[cluster]


class FloxCluster:
    """A cluster whose nodes have the image and a FloxHub each, and on which `apply` installs flox-node."""

    def __init__(self, cluster: Cluster, nodes: Sequence[Node] | None = None, policy: str | None = None) -> None:
        """nodes: to prepare, all of them by default; further ones by `prepare`.

        policy: the text of policy.toml, by default that of nodes with the tests' FloxHub.
        """
        self.cluster = cluster
        self.hub = _hub(cluster)
        for node in cluster.nodes if nodes is None else nodes:
            self.prepare(node)
        cluster.kubectl("create", "namespace", NAMESPACE)
        # `kubectl apply` leaves a key alone that the manifest does not have.
        literal = f"--from-literal=policy.toml={policy or flox.hub_policy()}"
        cluster.kubectl("create", "configmap", "flox-node", "--namespace", NAMESPACE, literal)

    @classmethod
    @contextlib.contextmanager
    def installed(cls, cluster: Cluster, policy: str | None = None) -> Iterator[Self]:
        """flox-node on every node of a cluster while the context lasts. policy: see the constructor."""
        applied = cls(cluster, policy=policy)
        applied.apply()
        with applied.taken_out():
            applied.labelled()
            yield applied

    @contextlib.contextmanager
    def taken_out(self) -> Iterator[None]:
        """Uninstalled from every node at the end of the context, once no Flox pod is left."""
        try:
            yield
            self.cluster.wait_until(lambda: not self.flox_pods(), 120, "no Flox pod is left")
            done = self.command("uninstall", "--purge")
            assert done.returncode == 0, done.stderr
        except BaseException as error:
            error.add_note(self.logs())
            raise
        finally:
            self.remove()

    def prepare(self, node: Node) -> None:
        """What a node needs of the world: the image, as if pulled, and FloxHub."""
        node.load(image.archive())
        if node not in _SERVED:
            flox.serve_hub(node, self.hub)
            _SERVED.add(node)

    def apply(self) -> None:
        """`kubectl apply` of the one file."""
        self.cluster.kubectl("apply", "--filename", MANIFEST)

    def labelled(self, *nodes: Node, timeout: float = 90) -> None:
        """Wait until these nodes (all of them by default) have the label."""
        names = [node.name for node in nodes or self.cluster.nodes]

        def all_of_them() -> bool:
            return all(self.node(name)["metadata"]["labels"].get("flox.dev/enabled") == "true" for name in names)

        self.cluster.wait_until(all_of_them, timeout, f"{names} are labelled")

    def converged(self, *nodes: Node, timeout: float = 120) -> None:
        """Wait until the condition of these nodes is true and their pods are ready."""
        names = [node.name for node in nodes or self.cluster.nodes]

        def all_of_them() -> bool:
            return all(self.condition(name)["status"] == "True" and self.pod_is_ready(name) for name in names)

        self.cluster.wait_until(all_of_them, timeout, f"{names} have converged")

    def reason(self, node: Node, *reasons: str, timeout: float = 120) -> Object:
        """Wait until the condition of a node has one of these reasons; the condition."""
        found: list[Object] = []

        def has() -> bool:
            found[:] = [self.condition(node.name)]
            return found[0]["reason"] in reasons

        self.cluster.wait_until(has, timeout, f"{node.name} tells {reasons}")
        return found[0]

    def node(self, name: str) -> Object:
        """A Node object."""
        found: Object = self.cluster.get("node", name)
        return found

    def condition(self, name: str) -> Object:
        """The condition FloxRuntimeReady of a node, with empty texts where it has none."""
        conditions: list[Object] = self.node(name)["status"].get("conditions", [])
        ours = (condition for condition in conditions if condition["type"] == "FloxRuntimeReady")
        return next(ours, {"status": "", "reason": "", "message": ""})

    def pods(self) -> dict[str, Object]:
        """The DaemonSet's pods that are not being deleted, by their nodes."""
        found = self.cluster.get("pods", "--namespace", NAMESPACE)["items"]
        return {pod["spec"]["nodeName"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def pod_is_ready(self, node: str) -> bool:
        """Whether the DaemonSet's pod on a node is ready."""
        conditions = self.pods().get(node, {}).get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def flox_pods(self) -> list[str]:
        """The names of the pods that need the handler, those that are ending among them."""
        found = self.cluster.get("pods", "--all-namespaces")["items"]
        return [pod["metadata"]["name"] for pod in found if pod["spec"].get("runtimeClassName") == "flox"]

    def logs(self) -> str:
        """What both containers of each pod wrote."""
        texts = []
        for node, pod in self.pods().items():
            for container in ("node", "reporter"):
                words = ("logs", "--namespace", NAMESPACE, pod["metadata"]["name"], f"--container={container}")
                texts.append(f"=== {node} {container}\n{self.cluster.try_kubectl(*words) or ''}")
        return "\n".join(texts)

    def events(self, node: Node) -> list[str]:
        """The reasons of our events about a node, the oldest first."""
        items = self.cluster.get("events", "--field-selector", f"involvedObject.name={node.name}")["items"]
        ours = [event for event in items if event["source"].get("component") == "flox-node"]
        return [event["reason"] for event in sorted(ours, key=lambda event: str(event["firstTimestamp"]))]

    def requests(self, node: Node) -> list[str]:
        """What the pod of a node has asked of the API server, each request once."""
        asked = {}
        for event in self.cluster.control_plane.requests(USER):
            if event["user"]["extra"].get("authentication.kubernetes.io/node-name") == [node.name]:
                asked[event["auditID"]] = f"{event['verb']} {event['requestURI']} {event['responseStatus']['code']}"
        return list(asked.values())

    def mode(self, mode: str) -> None:
        """Change what the DaemonSet does: "install" or "uninstall"."""
        operations = [
            {
                "op": "replace",
                "path": f"/spec/template/spec/containers/{number}/args",
                "value": [name, f"--mode={mode}"],
            }
            for number, name in enumerate(("node", "reporter"))
        ]
        self.patch("daemonset/flox-node", operations)

    def settings(self, text: str) -> None:
        """Change settings.toml."""
        self.patch("configmap/flox-node", [{"op": "add", "path": "/data/settings.toml", "value": text}])

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`flox-node cluster ...` as an administrator."""
        kubeconfig = f"--kubeconfig={self.cluster.control_plane.kubeconfig}"
        return self.cluster.run(_PROGRAM, "cluster", *words, kubeconfig, timeout=300)

    def patch(self, name: str, operations: Sequence[Any]) -> None:
        """A JSON patch of one of our objects."""
        self.cluster.kubectl("patch", "--namespace", NAMESPACE, name, "--type=json", "--patch", json.dumps(operations))

    def remove(self) -> None:
        """Delete what the manifest made; on the nodes nothing happens."""
        self.cluster.kubectl("delete", "--filename", MANIFEST, "--ignore-not-found", "--wait", timeout=PATIENCE_S)
        self.cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=PATIENCE_S)


def flox_pod(name: str, environment: str | None, *command: str, node: str | None = None, **spec: object) -> Object:
    """A pod of the RuntimeClass with the empty image. spec: further fields of its spec."""
    annotations = {} if environment is None else {flox.ENVIRONMENT: environment}
    container = {"name": "main", "image": "flox/empty:1.0.0", "command": list(command), "stdin": True}
    fields: Object = {
        "runtimeClassName": "flox",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        **spec,
    }
    if node is not None:
        fields["nodeSelector"] = {"kubernetes.io/hostname": node}
    metadata = {"name": name, "labels": {"app": name}, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": fields}
