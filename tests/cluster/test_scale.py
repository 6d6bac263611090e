"""Many nodes at once: the order of the slots, what each node asks of the API server, and what that costs it."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import MANIFEST, NAMESPACE
from tests.conftest import FULL

NODES, IDLE = (1000, 5000) if FULL else (30, 100)
_PROJECT = Path(__file__).parents[2]


@pytest.fixture
def simulated(cluster: Cluster) -> Generator[Cluster]:
    """The cluster with our objects, but no pod of ours, and with Node objects behind which there is no node."""
    labels = {"flox.test/simulated": "true"}
    names = [{"name": f"sim-{number}", "labels": labels} for number in range(IDLE)]
    objects = [{"apiVersion": "v1", "kind": "Node", "metadata": name} for name in names]
    cluster.kubectl("apply", "--filename", MANIFEST)
    nowhere = {"spec": {"template": {"spec": {"nodeSelector": {"flox.test/nowhere": "true"}}}}}
    cluster.kubectl("patch", "daemonset/flox-node", "--namespace", NAMESPACE, "--patch", json.dumps(nowhere))
    # A DaemonSet's controller would answer how many nodes there are; the simulated ones are not its.
    cluster.control_plane.kill("kube-controller-manager")
    counted = {"status": {"desiredNumberScheduled": NODES, "currentNumberScheduled": 0, "numberMisscheduled": 0}}
    counted["status"]["numberReady"] = 0
    status = ("--subresource=status", "--type=merge", "--patch", json.dumps(counted))
    cluster.kubectl("patch", "daemonset/flox-node", "--namespace", NAMESPACE, *status)
    for start in range(0, IDLE, 500):
        listed = {"apiVersion": "v1", "kind": "List", "items": objects[start : start + 500]}
        cluster.kubectl("create", "--filename=-", input=json.dumps(listed), timeout=300)
    yield cluster
    cluster.control_plane.run("kube-controller-manager")
    # All at once: kubectl would delete one after the other.
    cluster.kubectl("delete", "--raw", "/api/v1/nodes?labelSelector=flox.test/simulated", timeout=300)
    cluster.kubectl("delete", "--filename", MANIFEST, "--ignore-not-found", timeout=120)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(1800)
def test_a_thousand_nodes_install_one_first_and_then_a_tenth_at_a_time(simulated: Cluster) -> None:
    server = simulated.control_plane.pid("kube-apiserver")
    before = _cpu_s(server)
    arguments = (str(simulated.control_plane.kubeconfig), str(NODES), str(IDLE))
    program = (sys.executable, "-m", "tests.cluster.simulated", *arguments)
    command = simulated.command("env", f"PYTHONPATH={_PROJECT}", *program)
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr
    cpu = _cpu_s(server) - before
    told = json.loads(done.stdout)
    requests, failures = told.pop("requests"), told.pop("failures")
    mean = sum(requests) / len(requests)
    print(f"{NODES} nodes: {mean:.1f} requests each ({requests[-1]} at most), API server {cpu:.1f} s of CPU, {told}")
    print(f"{len(failures)} reports had to be started again: {failures[:5]}")

    assert told["installed"] == NODES
    assert told["most_before_proof"] == 1
    assert 1 < told["most"] <= -(-NODES // 10)
    assert mean <= 12
