"""`flox-node cluster ...` against a real API server, with an image that stands in for the agent.

The tests of this module follow each other: from a cluster without flox-node to one without it again.
"""

import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import standin
from tests.cluster.cluster import Cluster
from tests.cluster.objects import pod
from tests.cluster.standin import IMAGE, NEWER
from tests.conftest import FULL

PROGRAM = Path(sys.executable).with_name("flox-node")
Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


@pytest.fixture(scope="module")
def command(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Command]:
    """Run a command of `flox-node cluster`; afterwards the cluster is cleaned up, whatever the tests left."""
    cluster.load(*standin.archives(tmp_path_factory.mktemp("standin")))

    def run(*words: str) -> Done:
        return cluster.run(*argv(cluster, *words), timeout=240)

    yield run
    manifests = cluster.run(PROGRAM, "manifests").stdout
    cluster.kubectl("delete", "--filename=-", "--ignore-not-found", input=manifests, timeout=120)
    cluster.kubectl("label", "nodes", "--all", "flox.dev/enabled-")
    for node in cluster.nodes:
        condition = {"type": "FloxRuntimeReady", "$patch": "delete"}
        patch(cluster, node.name, {"status": {"conditions": [condition]}})


def argv(cluster: Cluster, *words: str) -> list[str | Path]:
    return [PROGRAM, "cluster", *words, f"--kubeconfig={cluster.control_plane.kubeconfig}"]


def patch(cluster: Cluster, node: str, change: object) -> None:
    cluster.kubectl("patch", "node", node, "--subresource=status", f"--patch={json.dumps(change)}")


def tell(cluster: Cluster, node: str, status: str, reason: str, message: str) -> None:
    """What the agent would say of its node."""
    now = "2026-01-01T00:00:00Z"
    fields = {"lastTransitionTime": now, "lastHeartbeatTime": now, "reason": reason, "message": message}
    patch(cluster, node, {"status": {"conditions": [{"type": "FloxRuntimeReady", "status": status, **fields}]}})


def live(cluster: Cluster, *names: str) -> None:
    for name in names:
        tell(cluster, name, "True", "Installed", "The handler flox is live.")
        cluster.kubectl("label", "node", name, "flox.dev/enabled=true", "--overwrite")


def ours(cluster: Cluster) -> str:
    """Everything that an install makes, as far as it is there."""
    manifests = cluster.run(PROGRAM, "manifests").stdout
    return cluster.kubectl("get", "--filename=-", "--ignore-not-found", "--output=name", input=manifests)


def images(cluster: Cluster) -> dict[str, str]:
    pods = cluster.get("pods", "--namespace=flox-node")["items"]
    return {each["spec"]["nodeName"]: each["spec"]["containers"][0]["image"] for each in pods}


def finding(done: Done, check: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    return next(each for each in found if each["id"] == check)


def test_a_cluster_without_flox_node_has_a_status_and_a_doctor(command: Command) -> None:
    done = command("status")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "flox-node is not installed in this cluster.")
    assert finding(command("doctor", "--json"), "daemon-set")["state"] == "problem"
    assert "Nothing to do" in command("uninstall").stdout


def test_a_dry_run_has_everything_checked_and_leaves_nothing(cluster: Cluster, command: Command) -> None:
    done = command("install", f"--image={IMAGE}", "--dry-run=server", "--json")
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    assert {each["change"] for each in told["objects"]} == {"created"}
    assert told["objects"][0]["kind"] == "Namespace"
    assert told["objects"][-1]["kind"] == "DaemonSet"
    assert ours(cluster) == ""


def test_what_the_api_server_does_not_take_is_told_before_anything_is_written(
    cluster: Cluster, command: Command
) -> None:
    done = command("install", f"--image={IMAGE}", "--overhead=memory=plenty")
    assert done.returncode == 9
    assert "RuntimeClass" in done.stderr
    assert "plenty" in done.stderr or "quantit" in done.stderr
    assert ours(cluster) == ""


def test_install_waits_for_every_node_and_one_that_refuses_is_no_failure(cluster: Cluster, command: Command) -> None:
    live(cluster, "worker-1")
    tell(cluster, "worker-2", "False", "Refused", "The image of this node is immutable.")
    done = command("install", f"--image={IMAGE}", "--timeout=120")
    assert done.returncode == 0, done
    lines = done.stderr.splitlines()
    assert lines[0] == "Namespace flox-node created"
    created = lines.index("DaemonSet flox-node created")
    assert lines.index("ValidatingAdmissionPolicyBinding flox-node-nodes created") < created
    assert any(line.startswith("worker-1: w") for line in lines[created:])
    assert "worker-1: ready, Installed: The handler flox is live." in lines[created:]
    assert "-> worker-2: The image of this node is immutable." in done.stdout
    assert set(images(cluster).values()) == {IMAGE}


def test_a_second_install_changes_nothing(cluster: Cluster, command: Command) -> None:
    before = cluster.get("daemonset", "flox-node", "--namespace=flox-node")["metadata"]["generation"]
    told = json.loads(command("install", f"--image={IMAGE}", "--json").stdout)
    assert {each["change"] for each in told["objects"]} == {"unchanged"}
    assert cluster.get("daemonset", "flox-node", "--namespace=flox-node")["metadata"]["generation"] == before


def test_status_shows_the_nodes_and_exits_with_7_while_one_is_not_ready(cluster: Cluster, command: Command) -> None:
    done = command("status")
    assert done.returncode == 0
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["worker-1"][1:3] == ["ready", "Installed"]
    assert rows["worker-2"][1:3] == ["refused", "Refused"]

    tell(cluster, "worker-2", "False", "Installing", "placing the payload")
    assert command("status").returncode == 7
    live(cluster, "worker-2")
    told = json.loads(command("status", "--json").stdout)
    assert (told["state"], told["image"], told["mode"]) == ("ready", IMAGE, "install")


def test_what_somebody_else_holds_is_named_and_left_alone(cluster: Cluster, command: Command) -> None:
    changed = ("patch", "runtimeclass", "flox", "--type=merge", "--field-manager=somebody")
    cluster.kubectl(*changed, '--patch={"scheduling": {"nodeSelector": {"flox.dev/enabled": "yes"}}}')
    done = command("install", f"--image={NEWER}")
    assert done.returncode == 3
    assert "RuntimeClass flox" in done.stderr
    assert "somebody" in done.stderr
    assert "--force-conflicts" in done.stderr
    assert set(images(cluster).values()) == {IMAGE}
    assert finding(command("doctor", "--json"), "runtime-class")["state"] == "problem"

    assert command("install", f"--image={IMAGE}", "--force-conflicts").returncode == 0
    assert finding(command("doctor", "--json"), "runtime-class")["state"] == "ok"


def test_the_doctor_believes_the_kubelet_more_than_the_label(command: Command) -> None:
    done = command("doctor", "--json")
    # The only problem there is: the stand-in has put no handler onto the node. containerd 1.7 reports none at all.
    problems = [each for each in json.loads(done.stdout)["checks"] if each["state"] == "problem"]
    assert [each["id"] for each in problems] == ["handler-reported"]
    assert problems[0]["cause"] == "worker-2 is labelled, but its kubelet does not report the handler"
    assert done.returncode == 7
    assert finding(done, "admission-policies")["state"] == "ok"  # the live ones are as we wrote them


def test_doctor_finds_what_is_wrong_with_nodes_and_pods(cluster: Cluster, command: Command) -> None:
    annotations = {"flox.dev/environment": "demo/hello@3"}
    lonely = pod("lonely", "true", runtimeClassName="flox", nodeSelector={"pool": "none"})
    lonely["metadata"]["annotations"] = annotations
    cluster.kubectl("label", "node", "worker-1", "flox-runtime=enabled")
    cluster.kubectl("delete", "validatingadmissionpolicybinding", "flox-node-leases")
    cluster.apply(lonely)
    try:
        cluster.wait_until(lambda: "PodScheduled" in str(cluster.get("pod", "lonely")["status"]))
        done = command("doctor")
        assert done.returncode == 7
        table = done.stdout
        assert "flox-runtime=enabled on worker-1" in table
        assert "ValidatingAdmissionPolicyBinding flox-node-leases is missing" in table
        assert "default/lonely: Unschedulable: 0/2 nodes are available" in table
        assert "a generation is written with a colon, demo/hello:3" in " ".join(table.split())
        assert table.count("-> ") >= 4
    finally:
        cluster.delete(lonely)
        cluster.kubectl("label", "node", "worker-1", "flox-runtime-")
        assert command("install", f"--image={IMAGE}").returncode == 0


def test_upgrade_waits_for_the_pods_of_the_new_version_and_keeps_the_settings(
    cluster: Cluster, command: Command
) -> None:
    before = cluster.get("configmap", "flox-node", "--namespace=flox-node")["data"]
    done = command("upgrade", f"--image={NEWER}", "--timeout=180")
    assert done.returncode == 0, done
    assert images(cluster) == {"worker-1": NEWER, "worker-2": NEWER}
    assert cluster.get("configmap", "flox-node", "--namespace=flox-node")["data"] == before
    assert ": waiting, OldPod: The pod of the former version still runs." in done.stderr  # which node's is not said


def test_an_image_that_nobody_has_ends_after_the_timeout_and_is_found_by_the_doctor(
    cluster: Cluster, command: Command
) -> None:
    done = command("upgrade", "--image=flox.test/agent:none", "--timeout=8")
    assert done.returncode == 9
    assert "of 2 nodes are not ready yet" in done.stderr
    assert "flox-node cluster doctor" in done.stderr
    assert "flox.test/agent:none" in finding(command("doctor", "--json"), "image")["cause"]
    assert command("upgrade", f"--image={NEWER}", "--timeout=180").returncode == 0


def test_collect_packs_logs_and_no_secret(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    cluster.kubectl("create", "secret", "generic", "hub", "--namespace=flox-node", "--from-literal=a=s3cr3t-of-us")
    output = tmp_path / "support.tar.gz"
    done = command("collect", "-o", str(output))
    assert done.returncode == 0, done
    with tarfile.open(output) as bundle:
        files = {each.name: bundle.extractfile(each) for each in bundle.getmembers()}
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    assert "node --mode=install: standing in" in texts["flox-node-support/logs/worker-1/node.txt"]
    assert "reporter --mode=install" in texts["flox-node-support/logs/worker-2/reporter.txt"]
    assert "FloxRuntimeReady" in texts["flox-node-support/nodes.json"]
    assert not [name for name, text in texts.items() if "s3cr3t-of-us" in text or "czNjcjN0LW9mLXVz" in text]
    assert not [name for name, text in texts.items() if text.startswith("not available")]


def test_uninstall_is_refused_while_flox_pods_are_there(cluster: Cluster, command: Command) -> None:
    lonely = pod("lonely", "true", runtimeClassName="flox", nodeSelector={"pool": "none"})
    cluster.apply(lonely)
    done = command("uninstall")
    cluster.delete(lonely)
    assert done.returncode == 6
    assert "default/lonely (on no node yet)" in done.stderr
    assert cluster.get("node", "worker-1")["metadata"]["labels"]["flox.dev/enabled"] == "true"


@pytest.mark.skipif(not FULL, reason="a node counts as down after most of a minute: make test-full")
@pytest.mark.timeout(400)
def test_a_node_that_is_down_is_named_and_the_others_are_reverted(cluster: Cluster, command: Command) -> None:
    node = cluster.node("worker-2")
    node.run("systemctl stop kubelet")
    try:
        cluster.wait_until(lambda: "Unknown" in str(cluster.get("node", node.name)["status"]["conditions"]), 120)
        done = command("uninstall", "--timeout=180")
        assert done.returncode == 9, done
        assert "1 of 2 nodes are not reverted: worker-2 (NodeNotReady" in done.stderr
        assert "worker-1: reverted" in done.stderr
        assert "daemonset.apps/flox-node" in ours(cluster)
        assert finding(command("doctor", "--json"), "nodes-down")["state"] == "warning"
    finally:
        node.run("systemctl start kubelet")
        cluster.wait_ready(node)


def test_an_uninstall_that_is_interrupted_goes_on_and_leaves_nothing(cluster: Cluster, command: Command) -> None:
    live(cluster, "worker-1", "worker-2")
    assert command("install", f"--image={IMAGE}", "--timeout=180").returncode == 0
    # Tests that run in the background of a shell have SIGINT ignored, and so would what they start.
    words = cluster.command("env", "--default-signal=INT", *argv(cluster, "uninstall"))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        told = []
        for line in running.stderr:
            told.append(line.strip())
            if "told to revert" in line:
                running.send_signal(signal.SIGINT)
    assert "Interrupted; `flox-node cluster uninstall` goes on where it stopped." in told
    assert running.returncode == 130
    assert "daemonset.apps/flox-node" in ours(cluster)
    assert json.loads(command("status", "--json").stdout)["mode"] == "uninstall"
    assert command("upgrade", f"--image={NEWER}").returncode == 3

    # What the uninstall changed in the live DaemonSet is ours, and no conflict.
    assert command("install", f"--image={IMAGE}", "--no-wait").returncode == 0
    assert json.loads(command("status", "--json").stdout)["mode"] == "install"

    done = command("uninstall")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "The cluster is as before."
    assert ours(cluster) == ""
    assert "flox.dev/enabled" not in cluster.get("node", "worker-1")["metadata"]["labels"]
    assert "Nothing to do" in command("uninstall").stdout
