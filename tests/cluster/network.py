"""Who has which address. Every address is in a network namespace of the bed, so clusters may run side by side.

The control plane's namespace has a bridge `eth0` (see `tests.bed.scope`), and each node's `eth0` is a cable to it, so
they are one network. Pods are routed, as with kubenet or kindnet.
"""

import subprocess

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


def connect(control_plane: str, nodes: list[str]) -> None:
    """Join the network namespaces `nodes`, in the order of their index, to that of the control plane, with routes."""
    for index, node in enumerate(nodes, 1):
        # Not the bridge that it was: br_netfilter would send what a Service maps to another node back into the bridge.
        _ip(node, "link", "delete", "eth0")
        _ip(control_plane, "link", "add", f"node{index}", "type", "veth", "peer", "name", "eth0", "netns", node)
        _ip(control_plane, "link", "set", f"node{index}", "master", "eth0", "up")
        _ip(node, "link", "set", "eth0", "up")
        _ip(node, "address", "add", f"{address(index)}/24", "dev", "eth0")
        _ip(node, "route", "add", "default", "via", API_SERVER)
    for index in range(1, len(nodes) + 1):
        for namespace in [control_plane, *nodes]:
            if namespace != nodes[index - 1]:
                _ip(namespace, "route", "add", pods_of(index), "via", address(index))


def _ip(namespace: str, *arguments: str) -> None:
    done = subprocess.run(["ip", "-n", namespace, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip -n {namespace} {' '.join(arguments)} failed: {done.stderr.strip()}")
