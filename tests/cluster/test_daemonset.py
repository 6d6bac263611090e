"""`kubectl apply` of one file makes the nodes of a real cluster Flox nodes, and hurts nobody's pods on the way.

The tests of this module follow each other: the first ones install, the last ones uninstall.
"""

import json
import time
from collections.abc import Callable, Generator

import pytest

from flox_node.kube import names
from flox_node.settings import STARTUP_TAINTS
from tests.bed import image
from tests.bed.flox import PRIVATE_TOKEN
from tests.bed.images import BUSYBOX
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import BESIDE, NAMESPACE, FloxCluster, flox_pod
from tests.cluster.node import Node
from tests.cluster.objects import Object, deployment, deployment_of, pod, service
from tests.cluster.test_cluster import FETCH, assert_answers, nodes_of, restarts_of
from tests.conftest import FULL
from tests.node.tree import tree

CONFIG = "etc/containerd/config.toml"
# `hello` and `busybox` exist only in the environment; what they need is in the image's place: one volume.
SERVER = "hello >/www/index.html; exec busybox httpd -f -p 8080 -h /www"
WWW = {"name": "www", "mountPath": "/www"}
THEIRS = "example.org/theirs"
ROLLOUTS = 20 if FULL else 1
BUDGET = 6 if FULL else 2  # restarts of containerd an hour


@pytest.fixture(scope="module")
def bystander(cluster: Cluster) -> Generator[dict[str, int]]:
    """Pods of somebody else's that run on every node all along; how often their containers were restarted."""
    objects = [deployment("bystander", 2, "sleep", "100000")]
    cluster.apply(*objects)
    cluster.rollout("deployment/bystander")
    yield restarts_of(cluster, "app=bystander")
    cluster.delete(*objects)


@pytest.fixture(scope="module")
def before(cluster: Cluster, bystander: dict[str, int]) -> dict[str, dict[str, tuple[object, ...]]]:
    """Every file of every node as it was before the first of our pods."""
    for node in cluster.nodes:
        (node.folder / "former.toml").write_bytes((node.root / CONFIG).read_bytes())
    return {node.name: tree(node, BESIDE) for node in cluster.nodes}


@pytest.fixture(scope="module")
def flox(cluster: Cluster, before: object, tmp_path_factory: pytest.TempPathFactory) -> Generator[FloxCluster]:
    """flox-node, applied to the cluster's two nodes and live on both."""
    applied = FloxCluster(cluster)
    applied.apply()
    try:
        applied.labelled()
        yield applied
    except BaseException as error:
        error.add_note(applied.logs())
        raise
    finally:
        applied.remove()


@pytest.fixture(autouse=True)
def nobody_was_hurt(cluster: Cluster, bystander: dict[str, int], request: pytest.FixtureRequest) -> Generator[None]:
    """After every test the other pods run as they did, unless their node was rebooted."""
    before = restarts_of(cluster, "app=bystander")
    yield
    if "reboot" not in request.node.name:
        assert restarts_of(cluster, "app=bystander") == before


def web() -> Object:
    """A Deployment over both nodes whose pods run out of an environment, with a probe that is a command of it."""
    volumes = [{"name": "www", "emptyDir": {}}]
    template = flox_pod("web", "demo/web", "busybox", "sh", "-c", SERVER, volumes=volumes)
    probe = {"exec": {"command": ["busybox", "test", "-s", "/www/index.html"]}, "periodSeconds": 1}
    template["spec"]["containers"][0] |= {"volumeMounts": [WWW], "readinessProbe": probe}
    return deployment_of(template, 2)


@pytest.fixture(scope="module")
def served(cluster: Cluster, flox: FloxCluster) -> Generator[dict[str, str]]:
    """Such a Deployment behind the Service `web`; the node of each of its pods. It runs through what follows."""
    objects = [web(), service("web", 8080)]
    cluster.apply(*objects)
    cluster.rollout("deployment/web", timeout=120)
    yield nodes_of(cluster, "app=web")
    cluster.delete(*objects)


def daemon_pids(cluster: Cluster) -> dict[str, int]:
    return {node.name: node.main_pid("containerd") for node in cluster.nodes}


@pytest.mark.timeout(300)
def test_one_apply_makes_both_nodes_flox_nodes_one_after_the_other(cluster: Cluster, flox: FloxCluster) -> None:
    flox.converged()
    for node in cluster.nodes:
        found = flox.node(node.name)
        condition = flox.condition(node.name)
        assert (condition["status"], condition["reason"]) == ("True", "Installed")
        annotations = found["metadata"]["annotations"]
        assert annotations["flox.dev/platform"] == "plain"
        assert annotations["flox.dev/containerd-version"].startswith(node.containerd)
        for name in ("payload", "shim-version", "flox-version"):
            assert annotations[f"flox.dev/{name}"]
        assert flox.events(node) == ["FloxInstalled"]
        assert len(flox.requests(node)) <= 12, flox.requests(node)
    lease = cluster.get("lease", "--namespace", NAMESPACE)["items"]
    assert [entry["metadata"]["name"] for entry in lease] == ["flox-node-slot-0"]
    assert lease[0]["spec"].get("holderIdentity", "") == ""


@pytest.mark.timeout(300)
def test_a_label_that_somebody_removed_comes_back_when_the_kubelet_starts(cluster: Cluster, flox: FloxCluster) -> None:
    node = cluster.nodes[0]
    cluster.kubectl("label", "node", node.name, "flox.dev/enabled-")
    node.run("systemctl restart kubelet")  # some kubelets register their node anew, without our label
    flox.labelled(node)


def test_the_kubelet_of_containerd_2_reports_the_handler(cluster: Cluster, flox: FloxCluster) -> None:
    handlers = flox.node("worker-2")["status"]["runtimeHandlers"]
    assert "flox" in [handler["name"] for handler in handlers]


def test_a_deployment_runs_out_of_its_environment_and_answers_on_its_service(
    cluster: Cluster, served: dict[str, str]
) -> None:
    assert sorted(served.values()) == ["worker-1", "worker-2"]
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    for node in cluster.nodes:
        assert_answers(cluster.command(*FETCH, f"http://{address}", of=node), ["Hello, world!"])


@pytest.mark.parametrize("node", ["worker-1", "worker-2"])
def test_logs_exec_attach_and_port_forward_reach_a_flox_pod(
    cluster: Cluster, flox: FloxCluster, applied: Callable[..., None], node: str
) -> None:
    volumes = [{"name": "www", "emptyDir": {}}]
    talk = 'while read -r line; do echo "heard $line"; done'
    talker = flox_pod(
        "talker", "demo/web", "busybox", "sh", "-c", f"hello; ({SERVER}) & {talk}", node=node, volumes=volumes
    )
    talker["spec"]["containers"][0]["volumeMounts"] = [WWW]
    applied(talker)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/talker", "--timeout=180s", timeout=190)

    assert cluster.kubectl("logs", "talker") == "Hello, world!\n"
    assert cluster.kubectl("exec", "talker", "--", "hello", "--greeting=hi") == "hi\n"
    with pytest.raises(RuntimeError, match="ended with 7"):
        cluster.kubectl("exec", "talker", "--", "busybox", "sh", "-c", "exit 7")
    with cluster.popen_kubectl("attach", "--stdin", "talker") as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write("hello\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == "heard hello\n"
        attached.terminate()
    with cluster.popen_kubectl("port-forward", "pod/talker", "9000:8080") as forward:
        assert forward.stdout is not None
        assert "Forwarding from 127.0.0.1:9000" in forward.stdout.readline()
        assert cluster.run(*FETCH, "http://127.0.0.1:9000").stdout == "Hello, world!\n"
        forward.terminate()


def test_a_pod_with_a_wrong_environment_is_told_why_in_its_event(
    cluster: Cluster, flox: FloxCluster, applied: Callable[..., None]
) -> None:
    applied(flox_pod("wrong", "demo/nothing", "hello"), flox_pod("none", None, "hello"))

    def told(name: str, text: str) -> bool:
        events = cluster.get("events", "--field-selector", f"involvedObject.name={name}")["items"]
        # Only its author can cure it, so it is the first container that fails, and not the sandbox.
        return any(text in event["message"] for event in events if event["reason"] == "Failed")

    cluster.wait_until(lambda: told("wrong", "FloxHub has no environment demo/nothing"), 60, "the pod is told")
    cluster.wait_until(lambda: told("none", "flox.dev/environment"), 60, "the pod is told")


def test_a_private_environment_is_run_by_the_pod_that_has_its_token_and_by_no_other(
    cluster: Cluster, flox: FloxCluster, applied: Callable[..., None]
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "floxhub"},
        "stringData": {"floxhub-token": PRIVATE_TOKEN},
    }
    volumes = [{"name": "token", "secret": {"secretName": "floxhub"}}]
    mine = flox_pod("mine", "acme/tool", "hello", restartPolicy="Never", volumes=volumes)
    mine["spec"]["containers"][0]["volumeMounts"] = [{"name": "token", "mountPath": "/var/run/secrets/flox.dev"}]
    applied(secret, mine, flox_pod("theirs", "acme/tool", "hello", restartPolicy="Never"))

    cluster.wait_until(lambda: cluster.try_kubectl("logs", "mine") == "Hello, world!\n", 60, "the pod has run")
    theirs = "involvedObject.name=theirs"
    cluster.wait_until(
        lambda: "only with a token" in json.dumps(cluster.get("events", "--field-selector", theirs)),
        60,
        "it is refused",
    )
    told = json.dumps(cluster.get("events")) + flox.logs()
    for node in cluster.nodes:
        told += node.run("cat /var/log/flox-node/*.jsonl", check=False).stdout
    assert PRIVATE_TOKEN not in told


def test_flox_pods_survive_a_restart_of_the_kubelet(
    cluster: Cluster, flox: FloxCluster, served: dict[str, str]
) -> None:
    before = restarts_of(cluster, "app=web")
    for node in cluster.nodes:
        node.run("systemctl restart kubelet")
        cluster.wait_ready(node)
    time.sleep(5)  # what a kubelet rejects at its start it rejects by now
    assert restarts_of(cluster, "app=web") == before
    assert nodes_of(cluster, "app=web") == served
    flox.labelled()


@pytest.mark.timeout(120 + ROLLOUTS * 90)
def test_a_rollout_restart_changes_nothing_on_the_nodes(
    cluster: Cluster, flox: FloxCluster, served: dict[str, str]
) -> None:
    flox.converged()
    pids, pods = daemon_pids(cluster), restarts_of(cluster, "app=web")
    trees = {node.name: tree(node, BESIDE) for node in cluster.nodes}
    events = {node.name: flox.events(node) for node in cluster.nodes}
    for _ in range(ROLLOUTS):
        cluster.kubectl("rollout", "restart", "daemonset/flox-node", "--namespace", NAMESPACE)
        cluster.rollout("daemonset/flox-node", "--namespace", NAMESPACE, timeout=120)
    assert daemon_pids(cluster) == pids
    assert restarts_of(cluster, "app=web") == pods
    assert {node.name: tree(node, BESIDE) for node in cluster.nodes} == trees
    assert {node.name: flox.events(node) for node in cluster.nodes} == events


@pytest.mark.timeout(400)
def test_an_upgrade_and_a_downgrade_leave_containerd_and_flox_pods_alone(
    cluster: Cluster, flox: FloxCluster, served: dict[str, str], applied: Callable[..., None]
) -> None:
    """Pods of the old shim are entered, killed and deleted under the new one, and the other way round."""
    pids, pods = daemon_pids(cluster), restarts_of(cluster, "app=web")
    before = {node.name: flox.node(node.name)["metadata"]["annotations"]["flox.dev/payload"] for node in cluster.nodes}
    cluster.load(image.next_archive())
    for reference in (image.NEXT_REFERENCE, image.REFERENCE):
        old = [
            flox_pod(f"old-{node.name}", "demo/web", "busybox", "sleep", "1000", node=node.name)
            for node in cluster.nodes
        ]
        applied(*old)
        for pod_ in old:
            cluster.kubectl(
                "wait", "--for=condition=Ready", f"pod/{pod_['metadata']['name']}", "--timeout=180s", timeout=190
            )
        images = [f"{name}={reference}" for name in ("node", "reporter")]
        cluster.kubectl("set", "image", "daemonset/flox-node", "--namespace", NAMESPACE, *images)
        cluster.rollout("daemonset/flox-node", "--namespace", NAMESPACE, timeout=180)
        for node in cluster.nodes:
            now = flox.node(node.name)["metadata"]["annotations"]["flox.dev/payload"]
            assert (now == before[node.name]) is (reference == image.REFERENCE)
            assert flox.events(node)[-1] == "FloxUpgraded"
            assert cluster.kubectl("exec", f"old-{node.name}", "--", "hello") == "Hello, world!\n"
        cluster.delete(*old)
    assert daemon_pids(cluster) == pids
    assert restarts_of(cluster, "app=web") == pods
    for node in cluster.nodes:
        payloads = sorted(path.name for path in (node.root / "opt/flox-node/payloads").iterdir())
        assert len(payloads) == 2
        assert before[node.name] in payloads
        # What nothing has used for long goes with the node's own collection.
        node.run("/opt/flox-node/bin/flox-node gc --days 0")
        assert [path.name for path in (node.root / "opt/flox-node/payloads").iterdir()] == [before[node.name]]
    assert restarts_of(cluster, "app=web") == pods


@pytest.mark.timeout(300)
def test_settings_that_cannot_be_meant_are_told_and_change_nothing(cluster: Cluster, flox: FloxCluster) -> None:
    pids = daemon_pids(cluster)
    flox.settings("speed = 3\n")
    for node in cluster.nodes:
        assert "speed is not known" in flox.reason(node, "InvalidSettings", timeout=150)["message"]
        assert flox.node(node.name)["metadata"]["labels"]["flox.dev/enabled"] == "true"
    flox.settings(f"purge = true\nrestarts_per_hour = {BUDGET}\n")
    flox.converged(timeout=150)
    assert daemon_pids(cluster) == pids


@pytest.mark.timeout(400)
def test_a_rival_that_rewrites_the_configuration_is_repaired_after_within_the_budget_and_told_of(
    cluster: Cluster, flox: FloxCluster, applied: Callable[..., None]
) -> None:
    node = cluster.nodes[1]
    node.write("etc/rival.toml", (node.folder / "former.toml").read_text())
    rival = pod(
        "rival",
        "sh",
        "-c",
        f"while sleep 10; do cat /host/etc/rival.toml >/host/{CONFIG}; done",
        node=node.name,
        volumes=[{"name": "host", "hostPath": {"path": "/"}}],
    )
    rival["spec"]["containers"][0] |= {
        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
        "securityContext": {"privileged": True},
    }
    pid = node.main_pid("containerd")
    applied(rival)
    condition = flox.reason(node, "RestartBudgetSpent", timeout=300)
    assert condition["status"] == "False"
    assert "restarts-per-hour" in condition["message"]
    restarts = json.loads((node.root / "run/flox-node/restarts.json").read_text())
    assert len(restarts) == BUDGET
    assert node.main_pid("containerd") != pid
    assert flox.node(node.name)["metadata"]["labels"]["flox.dev/enabled"] == "true"
    assert "FloxRepaired" in flox.events(node)


@pytest.mark.timeout(300)
def test_a_node_is_well_again_once_the_rival_is_gone(cluster: Cluster, flox: FloxCluster) -> None:
    node = cluster.nodes[1]
    node.run("rm /run/flox-node/restarts.json /etc/rival.toml")  # an hour later
    cluster.kubectl("delete", "pod", "--namespace", NAMESPACE, flox.pods()[node.name]["metadata"]["name"])
    flox.converged(node)
    assert b"runtimes.flox" in (node.root / CONFIG).read_bytes()


@pytest.mark.timeout(400)
def test_a_reboot_of_a_node_brings_its_flox_pods_back(
    cluster: Cluster, flox: FloxCluster, served: dict[str, str]
) -> None:
    node = cluster.node("worker-2")
    before = restarts_of(cluster, "app=web")
    after = {name: count + (served[name] == node.name) for name, count in before.items()}
    node.reboot()
    cluster.wait_ready(node)
    cluster.wait_until(lambda: restarts_of(cluster, "app=web") == after, 120, "the Flox pods run again")
    flox.converged(node)
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    assert_answers(cluster.command(*FETCH, f"http://{address}", of=node), ["Hello, world!"])


def _taints(flox: FloxCluster, node: Node) -> set[str]:
    return {taint["key"] for taint in flox.node(node.name)["spec"].get("taints") or []}


def _new_node(cluster: Cluster, flox: FloxCluster, containerd: str, *, broken: bool = False) -> Node:
    """A node that joins while flox-node is there, as an autoscaled group declares it: label, taints, another taint."""
    taints = ",".join(f"{key}=:NoSchedule" for key in STARTUP_TAINTS)
    node = cluster.add_node(
        containerd, f"--register-with-taints={taints},{THEIRS}=:PreferNoSchedule", f"--node-labels={names.ENABLED}=true"
    )
    if broken:
        # A containerd that works, until its configuration names our handler: no proof before the start can know.
        unit = f"[Service]\nExecStartPre=/bin/sh -c '! grep -q runtimes.flox /{CONFIG}'\n"
        node.write("etc/systemd/system/containerd.service.d/50-broken.conf", unit)
    node.boot()
    flox.prepare(node)
    cluster.wait_ready(node)
    return node


@pytest.mark.timeout(400)
def test_a_node_whose_containerd_is_broken_by_the_candidate_rolls_back_and_the_next_one_goes_on(
    cluster: Cluster, flox: FloxCluster
) -> None:
    broken = _new_node(cluster, flox, "2.1", broken=True)
    well = _new_node(cluster, flox, "1.7")
    try:
        condition = flox.reason(broken, "RolledBack", timeout=200)
        assert "old configuration is live again" in condition["message"]
        flox.labelled(well)
        assert _taints(flox, broken) == {*STARTUP_TAINTS, THEIRS}, "no Flox pod comes, although the label is there"
        assert "runtimes.flox" not in (broken.root / CONFIG).read_text()
        assert "flox" not in broken.cri.handlers()
        cluster.wait_ready(broken)
        assert flox.events(broken) == ["FloxRolledBack"]
        flox.converged(well)
        assert _taints(flox, well) == {THEIRS}
    finally:
        cluster.remove_node(well)
        cluster.remove_node(broken)


@pytest.mark.timeout(400)
def test_an_outage_of_the_api_server_does_not_stop_an_install_under_way(cluster: Cluster, flox: FloxCluster) -> None:
    node = _new_node(cluster, flox, "2.1")
    try:
        flox.reason(node, "Installing", timeout=90)
        cluster.control_plane.kill("kube-apiserver")
        try:
            deadline = time.monotonic() + 90
            while "flox" not in _handlers(node):
                assert time.monotonic() < deadline
                time.sleep(0.5)
        finally:
            cluster.control_plane.run("kube-apiserver")
            cluster.control_plane.wait_ready()
        flox.converged(node)
        assert flox.node(node.name)["metadata"]["labels"]["flox.dev/enabled"] == "true"
    finally:
        cluster.remove_node(node)


def _handlers(node: Node) -> list[str]:
    try:
        return list(node.cri.handlers())
    except Exception:  # it is being restarted
        return []


@pytest.mark.timeout(300)
def test_an_uninstall_waits_while_flox_pods_run(cluster: Cluster, flox: FloxCluster, served: dict[str, str]) -> None:
    pids = daemon_pids(cluster)
    refused = flox.command("uninstall")
    assert refused.returncode == 6
    assert "default/web-" in refused.stderr
    flox.mode("uninstall")  # and who does it with kubectl alone is told by the nodes
    cluster.wait_until(
        lambda: any(flox.condition(node.name)["reason"] == "InUse" for node in cluster.nodes), 120, "a node waits"
    )
    assert daemon_pids(cluster) == pids
    assert all("flox" in node.cri.handlers() for node in cluster.nodes)
    flox.mode("install")
    flox.converged()


@pytest.mark.timeout(400)
def test_an_uninstall_leaves_the_nodes_as_they_were_to_the_byte(
    cluster: Cluster, flox: FloxCluster, before: dict[str, dict[str, tuple[object, ...]]]
) -> None:
    cluster.kubectl("delete", "deployment/web", "--wait", "--cascade=foreground", "--ignore-not-found")
    cluster.wait_until(lambda: not nodes_of(cluster, "app=web"), 60, "no Flox pod is left")
    done = flox.command("uninstall", "--purge", "--timeout=280", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.try_kubectl("get", "namespace", NAMESPACE) is None
    assert cluster.try_kubectl("get", "runtimeclass", "flox") is None
    for node in cluster.nodes:
        found = flox.node(node.name)
        assert flox.events(node)[-1] == "FloxUninstalled"
        assert not [name for name in found["metadata"]["labels"] if name.startswith("flox.dev/")]
        assert not [name for name in found["metadata"]["annotations"] if name.startswith("flox.dev/")]
        assert flox.condition(node.name)["status"] == ""
        assert "flox" not in node.cri.handlers()
        assert tree(node, BESIDE) == before[node.name]


def test_the_images_of_the_tests_are_what_they_are_called(cluster: Cluster, flox: FloxCluster) -> None:
    """The pods above ran the image that the Dockerfile makes, and the empty image that the payload brings."""
    for node in cluster.nodes:
        names = node.ctr("images", "list", "--quiet").split()
        assert "docker.io/library/flox-node:0.1.0" in names
        assert BUSYBOX in names
