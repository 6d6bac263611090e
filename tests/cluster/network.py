"""Who has which address. Every address is in a network namespace of the bed, so clusters may run side by side.

The control plane's namespace has a bridge `eth0` (see `tests.bed.scope`), and each node's `eth0` is a cable to it, so
they are one network. Pods are routed, as with kubenet or kindnet.
"""

import subprocess
from collections.abc import Sequence

API_SERVER = "192.0.2.1"  # `Scope` gave it to the control plane's eth0
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"


def address(index: int) -> str:
    """The address of the node `index`, counted from 1."""
    return f"192.0.2.{10 + index}"


def pods_of(index: int) -> str:
    """The addresses of the pods of the node `index`."""
    return f"10.244.{index}.0/24"


def connect(control_plane: str, nodes: Sequence[str], node: str) -> None:
    """Join the network namespace `node`, as the next after `nodes`, to theirs and the control plane's, with routes."""
    index = len(nodes) + 1
    # Its eth0 is not the bridge that it was: br_netfilter sends what a Service maps to another node into the bridge.
    _ip(node, "link", "delete", "eth0")
    _ip(control_plane, "link", "add", f"node{index}", "type", "veth", "peer", "name", "eth0", "netns", node)
    _ip(control_plane, "link", "set", f"node{index}", "master", "eth0", "up")
    _ip(node, "link", "set", "eth0", "up")
    _ip(node, "address", "add", f"{address(index)}/24", "dev", "eth0")
    _ip(node, "route", "add", "default", "via", API_SERVER)
    for namespace in (control_plane, *nodes):
        _ip(namespace, "route", "add", pods_of(index), "via", address(index))
    for other in range(1, index):
        _ip(node, "route", "add", pods_of(other), "via", address(other))


def disconnect(control_plane: str, nodes: Sequence[str]) -> None:
    """Take back the routes to the node that came after `nodes`; the cable went with its namespace."""
    for namespace in (control_plane, *nodes):
        _ip(namespace, "route", "delete", pods_of(len(nodes) + 1))


def _ip(namespace: str, *arguments: str) -> None:
    done = subprocess.run(["ip", "-n", namespace, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip -n {namespace} {' '.join(arguments)} failed: {done.stderr.strip()}")
