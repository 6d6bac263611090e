"""What the DaemonSet costs: until a node is labelled, of the API server, and while nothing happens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.rows import Measurement, Row, row
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.node import Node

IDLE_S = 600.0
_SETTLE_S = 90.0  # the reporter looks again 10 and 60 s after a kubelet's start
_CGROUPS = Path("/sys/fs/cgroup")
_HOUR_S = 3600.0


def apply_and_idle() -> Sequence[Row]:
    """`kubectl apply` on two nodes that have the image, then ten minutes of nothing, one scrape of the metrics before.

    Seconds until labelled count from the apply, over both nodes one after the other, divided by their number.
    """
    with Cluster() as cluster:
        flox = FloxCluster(cluster)
        started = time.monotonic()
        flox.apply()
        flox.labelled()
        labelled = (time.monotonic() - started) / len(cluster.nodes)
        flox.converged()
        _tell_phases(flox)
        installed = {node.name: len(flox.requests(node)) for node in cluster.nodes}
        time.sleep(_SETTLE_S)
        for node in cluster.nodes:
            _scrape(flox, node)
        before = {node.name: (_cpu_s(flox, node), len(flox.requests(node))) for node in cluster.nodes}
        time.sleep(IDLE_S)
        after = {node.name: (_cpu_s(flox, node), len(flox.requests(node))) for node in cluster.nodes}
        memory = [_rss_mib(flox, node) for node in cluster.nodes]
    scale = _HOUR_S / IDLE_S
    cpu = [(after[name][0] - before[name][0]) * scale for name in before]
    requests = [(after[name][1] - before[name][1]) * scale for name in before]
    return (
        row("cluster.apply_to_labelled_s", [labelled], unit="s", goal=30),
        row("api.install_requests_per_node", [float(count) for count in installed.values()], unit="", goal=12),
        row("agent.idle_rss_mib", memory, unit="MiB", goal=56),
        row("agent.idle_cpu_s_per_hour", cpu, unit="s", goal=2),
        row("api.idle_requests_per_node_hour", requests, unit="", goal=2),
    )


def _tell_phases(flox: FloxCluster) -> None:
    for node in flox.cluster.nodes:
        page = _scrape(flox, node).splitlines()
        for line in page:
            if line.startswith("flox_node_install_"):
                print(f"[bench] {node.name}: {line}", flush=True)


def _scrape(flox: FloxCluster, node: Node) -> str:
    address = flox.pods()[node.name]["status"]["podIP"]
    fetch = f"import urllib.request as u; print(u.urlopen('http://{address}:9580/metrics').read().decode())"
    return flox.cluster.run("python3", "-c", fetch).stdout


def _cgroup(flox: FloxCluster, node: Node, controller: str) -> Path:
    """The cgroup of the pod with both its containers."""
    uid = flox.pods()[node.name]["metadata"]["uid"].replace("-", "_")
    [found] = (_CGROUPS / controller / node.folder.name).glob(f"**/*pod{uid}.slice")
    return found


def _cpu_s(flox: FloxCluster, node: Node) -> float:
    return int((_cgroup(flox, node, "cpuacct") / "cpuacct.usage").read_text()) / 1e9


def _rss_mib(flox: FloxCluster, node: Node) -> float:
    """Memory of the processes and of the files that they have mapped; the page cache of files read is the node's."""
    lines = (_cgroup(flox, node, "memory") / "memory.stat").read_text().splitlines()
    values = {name: int(value) for name, value in (line.split() for line in lines)}
    return (values["total_rss"] + values["total_mapped_file"]) / (1 << 20)


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    apply_and_idle: (
        "cluster.apply_to_labelled_s",
        "api.install_requests_per_node",
        "agent.idle_rss_mib",
        "agent.idle_cpu_s_per_hour",
        "api.idle_requests_per_node_hour",
    )
}
