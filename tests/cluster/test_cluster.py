"""The cluster is a cluster: real nodes, services, names, kubectl's streams, authorization, and reboots."""

import json
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import pytest

from tests.bed.images import BUSYBOX
from tests.cluster import binaries, network
from tests.cluster.cluster import Cluster
from tests.cluster.objects import deployment, pod, service

# An HTTP server whose answer is the name of its pod.
SERVER = "mkdir /tmp/www; hostname >/tmp/www/index.html; exec busybox httpd -f -p 8080 -h /tmp/www"
FETCH = ("busybox", "timeout", "5", "busybox", "wget", "-qO-")  # `wget -T` of Debian's static busybox crashes


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Generator[dict[str, str]]:
    """A Deployment of two HTTP servers behind the Service `web`; the node of each of its pods."""
    objects = [deployment("web", 2, "sh", "-c", SERVER), service("web", 8080, type="NodePort")]
    cluster.apply(*objects)
    cluster.rollout("deployment/web")
    yield nodes_of(cluster, "app=web")
    cluster.delete(*objects)


def nodes_of(cluster: Cluster, selector: str) -> dict[str, str]:
    pods = cluster.get("pods", "--selector", selector)["items"]
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}


def restarts_of(cluster: Cluster, selector: str) -> dict[str, int]:
    """How often the container of each of the pods was restarted, once all are ready.

    A kubelet that has just started says of no pod with a probe that it is.
    """
    found: dict[str, int] = {}

    def ready() -> bool:
        pods = cluster.get("pods", "--selector", selector)["items"]
        statuses = {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0] for pod in pods}
        found.clear()
        found.update((name, status["restartCount"]) for name, status in statuses.items())
        return all(status["ready"] for status in statuses.values())

    cluster.wait_until(ready, 90, f"the pods {selector} are ready")
    return found


def assert_answers(argv: Sequence[str | Path], expected: Iterable[str]) -> None:
    """The command, run again and again, prints each line of `expected` and nothing else."""
    missing = set(expected)
    deadline = time.monotonic() + 30
    while missing:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        missing.discard(done.stdout.strip())
        assert time.monotonic() < deadline, f"{missing} did not answer; the last was {done}"
        assert done.returncode or done.stdout.strip() in set(expected)


def test_two_nodes_with_containerd_1_7_and_2_1_are_ready_within_a_minute(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node["status"] for node in cluster.get("nodes")["items"]}

    runtimes = {name: status["nodeInfo"]["containerRuntimeVersion"] for name, status in nodes.items()}
    assert sorted(runtimes) == ["worker-1", "worker-2"]
    assert runtimes["worker-1"].startswith("containerd://1.7.")
    assert runtimes["worker-2"].startswith("containerd://2.1.")
    versions = {status["nodeInfo"]["kubeletVersion"] for status in nodes.values()}
    assert versions == {binaries.version(cluster.kubernetes)}
    assert cluster.ready_seconds < 60  # measured 7 s; a busy machine takes longer
    print(f"nodes Ready after {cluster.ready_seconds:.1f} s, DNS after {cluster.start_seconds:.1f} s")


def test_no_unit_of_a_node_has_failed(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.run("systemctl --failed --quiet --plain").stdout == ""


def test_a_deployment_over_both_nodes_answers_on_its_service(
    cluster: Cluster, web: dict[str, str], applied: Callable[..., None]
) -> None:
    assert sorted(web.values()) == ["worker-1", "worker-2"]
    applied(*(pod(f"client-{node.name}", "sleep", "1000", node=node.name) for node in cluster.nodes))
    cluster.kubectl("wait", "--for=condition=Ready", *(f"pod/client-{node.name}" for node in cluster.nodes))

    for node in cluster.nodes:
        fetch = ("exec", f"client-{node.name}", "--", *FETCH, "http://web.default.svc.cluster.local")
        assert_answers(cluster.control_plane.kubectl(*fetch), web)


def test_a_service_answers_on_the_port_of_every_node(cluster: Cluster, web: dict[str, str]) -> None:
    port = cluster.get("service", "web")["spec"]["ports"][0]["nodePort"]

    for node in cluster.nodes:
        assert_answers(cluster.command(*FETCH, f"http://{node.address}:{port}"), web)


def test_a_pod_that_answers_itself_through_its_service_is_reached(
    cluster: Cluster, applied: Callable[..., None]
) -> None:
    applied(pod("alone", "sh", "-c", SERVER), service("alone", 8080))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/alone")

    assert_answers(cluster.control_plane.kubectl("exec", "alone", "--", *FETCH, "http://alone.default"), ["alone"])


def test_a_pod_talks_to_the_api_with_its_service_account(cluster: Cluster, applied: Callable[..., None]) -> None:
    applied(pod("client", "sleep", "1000"))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/client")
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    url = "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews"
    review = '{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'
    ask = (
        f'busybox wget -qO- --header "Authorization: Bearer $(cat {account}/token)" '
        f"--header 'Content-Type: application/json' --post-data '{review}' {url} 2>&1"
    )

    answer = cluster.kubectl("exec", "client", "--", "sh", "-c", ask)

    user = json.loads(answer[answer.index("{") :])["status"]["userInfo"]
    assert user["username"] == "system:serviceaccount:default:default"
    assert user["extra"]["authentication.kubernetes.io/pod-name"] == ["client"]


@pytest.mark.parametrize("node", ["worker-1", "worker-2"])
def test_kubectl_logs_exec_attach_and_port_forward_reach_a_pod(
    cluster: Cluster, applied: Callable[..., None], node: str
) -> None:
    talk = 'while read -r line; do echo "heard $line"; done'
    applied(pod("echo", "sh", "-c", f"echo started; ({SERVER}) & {talk}", node=node))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/echo")

    assert cluster.kubectl("logs", "echo") == "started\n"
    assert cluster.kubectl("exec", "echo", "--", "hostname") == "echo\n"
    assert cluster.kubectl("exec", "--stdin", "echo", "--", "cat", input="in and out") == "in and out"
    with pytest.raises(RuntimeError, match="ended with 7"):
        cluster.kubectl("exec", "echo", "--", "sh", "-c", "exit 7")

    with cluster.popen_kubectl("attach", "--stdin", "echo") as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write("hello\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == "heard hello\n"
        attached.terminate()

    with cluster.popen_kubectl("port-forward", "pod/echo", "9000:8080") as forward:
        assert forward.stdout is not None
        assert "Forwarding from 127.0.0.1:9000" in forward.stdout.readline()
        assert cluster.run(*FETCH, "http://127.0.0.1:9000").stdout == "echo\n"
        forward.terminate()


@pytest.mark.parametrize("node", ["worker-1", "worker-2"])
def test_kubectl_debug_joins_a_pod_and_opens_a_node(cluster: Cluster, applied: Callable[..., None], node: str) -> None:
    applied(pod("ill", "sleep", "4242", node=node))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/ill")
    debug = ("debug", f"--image={BUSYBOX}", "--container=debugger", "--attach=false")

    cluster.kubectl(*debug, "ill", "--target=main", "--", "sh", "-c", "cat /proc/1/cmdline")
    cluster.wait_until(lambda: "4242" in (cluster.try_kubectl("logs", "ill", "--container=debugger") or ""))

    created = cluster.kubectl(*debug, f"node/{node}", "--", "cat", "/host/etc/hostname")
    debugger = next(word for word in created.split() if word.startswith(f"node-debugger-{node}"))
    cluster.wait_until(lambda: cluster.try_kubectl("logs", debugger) == f"{node}\n")
    cluster.kubectl("delete", "pod", debugger, "--now")


def test_a_node_may_only_touch_itself_and_what_its_pods_need(
    cluster: Cluster, applied: Callable[..., None], tmp_path: Path
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"a": "b"}}
    mount = {"volumes": [{"name": "key", "secret": {"secretName": "key"}}]}
    kubeconfig = tmp_path / "kubelet.conf"
    kubeconfig.write_text((cluster.node("worker-1").root / "etc/kubernetes/kubelet.conf").read_text())

    def as_worker_1(*arguments: str) -> str:
        command = cluster.control_plane.command("kubectl", f"--kubeconfig={kubeconfig}", *arguments)
        done = cluster.run(*command)
        return done.stdout + done.stderr

    applied(secret, pod("other", "sleep", "1000", node="worker-2", **mount))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/other")

    assert "no relationship found between node 'worker-1' and this object" in as_worker_1("get", "secret", "key")
    assert "only its own Node object" in as_worker_1("label", "node", "worker-2", "a=b")
    assert "is not allowed to modify labels" in as_worker_1(
        "label", "node", "worker-1", "node-restriction.kubernetes.io/a=b"
    )
    assert "labeled" in as_worker_1("label", "node", "worker-1", "flox.test/a=b")

    applied(pod("own", "sleep", "1000", node="worker-1", **mount))
    cluster.wait_until(lambda: "Opaque" in as_worker_1("get", "secret", "key"))


def test_a_validating_admission_policy_is_enforced(cluster: Cluster, applied: Callable[..., None]) -> None:
    api, name = "admissionregistration.k8s.io/v1", "no-forbidden"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    validation = {"expression": "!has(object.data.forbidden)", "message": "that key is forbidden"}
    policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    applied(
        {"apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": policy},
        {"apiVersion": api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name}, "spec": binding},
    )

    def create(key: str) -> str:
        command = cluster.control_plane.kubectl(
            "create", "configmap", "a", f"--from-literal={key}=1", "--dry-run=server"
        )
        done = cluster.run(*command)
        return done.stdout + done.stderr

    cluster.wait_until(lambda: "that key is forbidden" in create("forbidden"))
    assert "created" in create("allowed")


def test_a_restart_of_containerd_restarts_the_kubelet_and_keeps_the_pods(cluster: Cluster, web: dict[str, str]) -> None:
    before = restarts_of(cluster, "app=web")

    for node in cluster.nodes:
        kubelet = node.main_pid("kubelet")
        node.run("systemctl reset-failed containerd && systemctl restart containerd")
        assert node.main_pid("kubelet") not in (0, kubelet)
        cluster.wait_ready(node)

    assert restarts_of(cluster, "app=web") == before
    assert nodes_of(cluster, "app=web") == web


def test_a_reboot_of_a_node_brings_its_pods_back(cluster: Cluster, web: dict[str, str]) -> None:
    node = cluster.node("worker-2")
    before = restarts_of(cluster, "app=web")
    after = {name: count + (web[name] == node.name) for name, count in before.items()}

    node.reboot()
    cluster.wait_ready(node)

    what = "the pod of worker-2 runs again and that of worker-1 was left alone"
    cluster.wait_until(lambda: restarts_of(cluster, "app=web") == after, 90, what)
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    assert_answers(cluster.command(*FETCH, f"http://{address}", of=node), web)


def test_pods_have_addresses_of_their_nodes_network(cluster: Cluster, web: dict[str, str]) -> None:
    for pod_ in cluster.get("pods", "--selector=app=web")["items"]:
        index = int(pod_["spec"]["nodeName"].removeprefix("worker-"))
        assert pod_["status"]["podIP"].startswith(network.pods_of(index).removesuffix("0/24"))


def test_an_outage_of_the_api_server_leaves_the_pods_alone(cluster: Cluster, web: dict[str, str]) -> None:
    address = cluster.get("service", "web")["spec"]["clusterIP"]

    cluster.control_plane.kill("kube-apiserver")
    assert cluster.try_kubectl("get", "nodes") is None
    assert_answers(cluster.command(*FETCH, f"http://{address}", of=cluster.nodes[0]), web)

    cluster.control_plane.run("kube-apiserver")
    cluster.control_plane.wait_ready()
    assert nodes_of(cluster, "app=web") == web


def test_a_node_that_is_added_joins_with_what_its_group_gives_it(
    cluster: Cluster, applied: Callable[..., None]
) -> None:
    node = cluster.add_node(
        "2.1", "--node-labels=flox.test/group=late", "--register-with-taints=flox.test/a=:NoSchedule"
    )
    try:
        node.boot()
        cluster.wait_ready(node)

        joined = cluster.get("node", node.name)
        assert joined["metadata"]["labels"]["flox.test/group"] == "late"
        assert {"key": "flox.test/a", "effect": "NoSchedule"} in joined["spec"]["taints"]

        applied(pod("guest", "sh", "-c", SERVER, node=node.name, tolerations=[{"key": "flox.test/a"}]))
        cluster.kubectl("wait", "--for=condition=Ready", "pod/guest")
        address = cluster.get("pod", "guest")["status"]["podIP"]
        assert_answers(cluster.command(*FETCH, f"http://{address}:8080", of=cluster.nodes[0]), ["guest"])
        cluster.kubectl("delete", "pod", "guest", "--now")
    finally:
        cluster.remove_node(node)
