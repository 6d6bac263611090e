"""A real cluster on this machine: a control plane, and node boxes with real kubelets, in a network of their own."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bed import releases
from tests.bed.processes import PATIENCE_S
from tests.cluster import binaries, network
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import Node


class Cluster:
    """One cluster, made by `start` and gone after `close`. As a context manager it is up on entry."""

    def __init__(self, containerd: Sequence[str] = releases.DEFAULT, *, kubernetes: str | None = None) -> None:
        """containerd: the release of each node. kubernetes: the minor release, by default what `KUBERNETES` says."""
        self.kubernetes = kubernetes or binaries.release()
        self.nodes: list[Node] = []
        self.ready_seconds = 0.0  # from nothing until every node was Ready
        self.start_seconds = 0.0  # ... and CoreDNS was
        self._containerd = containerd
        binaries.build(self.kubernetes)
        self.control_plane = ControlPlane(self.kubernetes)

    def start(self, timeout: float = 120) -> Self:
        """Start the control plane, boot the nodes and wait until every node is Ready and names are resolved."""
        started = time.monotonic()
        self.control_plane.start(timeout)
        for containerd in self._containerd:
            self.add_node(containerd)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._boot, self.nodes))
        self.control_plane.add_dns()
        for node in self.nodes:
            self.wait_ready(node, timeout)
        self.ready_seconds = time.monotonic() - started
        self.rollout("deployment/coredns", "--namespace=kube-system")
        self.start_seconds = time.monotonic() - started
        return self

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException as error:
            error.add_note(self.logs())
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_node(self, containerd: str, *kubelet_arguments: str) -> Node:
        """One node more, connected but off: `boot` it, and it joins. Its images are the standard ones.

        kubelet_arguments: what a node group gives its nodes, e.g. "--register-with-taints=flox.test/a=:NoSchedule".
        """
        others = [node.network_namespace.name for node in self.nodes]
        node = Node(len(self.nodes) + 1, self.control_plane, containerd, *kubelet_arguments)
        self.nodes.append(node)
        network.connect(self.control_plane.scope.name, others, node.network_namespace.name)
        return node

    def remove_node(self, node: Node) -> None:
        """Remove the node that was added last, from the cluster too."""
        assert self.nodes[-1] is node
        self.kubectl("delete", "node", node.name, "--ignore-not-found")
        node.close()
        network.disconnect(self.control_plane.scope.name, [other.network_namespace.name for other in self.nodes[:-1]])
        self.nodes.remove(node)

    def node(self, name: str) -> Node:
        """The node of this name ("worker-1")."""
        return next(node for node in self.nodes if node.name == name)

    def kubectl(self, *arguments: str | Path, input: str | None = None, timeout: float = PATIENCE_S) -> str:
        """Run an administrator's kubectl; what it printed. A failure raises with its errors."""
        done = self._kubectl(arguments, input, timeout)
        if done.returncode:
            words = " ".join(map(str, arguments))
            raise RuntimeError(f"kubectl {words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def try_kubectl(self, *arguments: str | Path, input: str | None = None, timeout: float = PATIENCE_S) -> str | None:
        """As `kubectl`, but None if it failed."""
        done = self._kubectl(arguments, input, timeout)
        return None if done.returncode else done.stdout

    def popen_kubectl(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start an administrator's kubectl with pipes for its input and output (attach, port-forward, watch)."""
        pipe = subprocess.PIPE
        command = self.control_plane.kubectl(*arguments)
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def command(self, *argv: str | Path, of: Node | None = None) -> list[str | Path]:
        """The argv that runs a program of this machine in the control plane's network, or in that of a node."""
        namespace = self.control_plane.scope.network_namespace if of is None else of.network_namespace
        return ["nsenter", f"--net={namespace}", *argv]

    def run(self, *argv: str | Path, timeout: float = PATIENCE_S) -> "subprocess.CompletedProcess[str]":
        """Run a program of this machine in the control plane's network, where nodes and pods can be reached."""
        return subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=timeout, check=False)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl("apply", "--filename=-", input=_list(objects))

    def delete(self, *objects: dict[str, Any]) -> None:
        """Delete objects, and wait until they and what they own are gone."""
        self.kubectl(
            "delete", "--filename=-", "--ignore-not-found", "--now", "--cascade=foreground", input=_list(objects)
        )

    def rollout(self, name: str, *arguments: str, timeout: float = PATIENCE_S) -> None:
        """Wait until a Deployment or DaemonSet ("deployment/web") is rolled out."""
        self.kubectl("rollout", "status", name, f"--timeout={timeout:.0f}s", *arguments, timeout=timeout + 10)

    def load(self, *archives: Path) -> None:
        """Load image archives into every node."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.load(*archives), self.nodes))

    def wait_ready(self, node: Node, timeout: float = PATIENCE_S) -> None:
        """Wait until the kubelet of the node's present boot says that it is Ready."""
        boot = node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()

        def ready() -> bool:
            text = self.try_kubectl("get", "node", node.name, "--output=json")
            if text is None:
                return False
            status = json.loads(text)["status"]
            conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
            return conditions.get("Ready") == "True" and bool(status["nodeInfo"]["bootID"] == boot)

        self.wait_until(ready, timeout, f"{node.name} is Ready")

    def wait_until(
        self, condition: Callable[[], bool], timeout: float = PATIENCE_S, what: str = "the condition holds"
    ) -> None:
        """Poll `condition`; RuntimeError with the cluster's logs when it does not hold after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            self.control_plane.check_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"Not after {timeout:.0f} s: {what}.\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of what the control plane and the nodes wrote, and the events."""
        events = self.try_kubectl("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp") or ""
        nodes = (f"=== {node.name}\n{node.logs()}" for node in self.nodes)
        return "\n".join([self.control_plane.logs(), *nodes, f"=== events\n{events[-8000:]}"])

    def close(self) -> None:
        """Remove everything; done twice it does nothing."""
        for node in self.nodes:
            node.close()
        self.nodes.clear()
        if self.control_plane.scope.folder.exists():
            self.control_plane.close()

    def _boot(self, node: Node) -> None:
        node.boot()
        node.load(binaries.coredns())

    def _kubectl(
        self, arguments: Sequence[str | Path], input: str | None, timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        command = self.control_plane.kubectl(*arguments)
        text = "" if input is None else input
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False)


def _list(objects: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
