"""What a refused pod does under each restart policy, and that it heals by itself once the cause is gone."""

import functools
from collections.abc import Callable, Generator

import pytest

from tests.bed import store
from tests.bed.processes import PATIENCE_S
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster, flox_pod
from tests.cluster.objects import Object
from tests.conftest import FULL
from tests.doubles.hub import HubData, catalog_package, lockfile

pytestmark = [pytest.mark.skipif(not FULL, reason="part of make test-full"), pytest.mark.timeout(600)]
POLICIES = ("Always", "OnFailure", "Never")


@pytest.fixture(scope="module")
def hub(cluster: Cluster) -> Generator[HubData]:
    with FloxCluster.installed(cluster) as installed:
        yield installed.hub


def _publish(hub: HubData, owner: str) -> None:
    hub.publish(owner, "tool", lockfile([catalog_package("hello", {"out": store.binary_cache().hello_store_path})]))


def _nothing(_: HubData) -> None:
    pass


def _close(hub: HubData) -> None:
    _publish(hub, "closed")
    hub.restrict("closed", "flox_pat_of-nobody")


# By the code of the refusal: the environment's owner, how it comes about, and how it ends.
FINAL: dict[str, tuple[str, Callable[[HubData], None], Callable[[HubData], None]]] = {
    "environment-not-found": ("later", _nothing, lambda hub: _publish(hub, "later")),
    "access-denied": ("closed", _close, lambda hub: hub.open_to_all("closed")),
}


@pytest.mark.parametrize("code", FINAL)
def test_a_final_refusal_ends_the_first_container_and_a_restarted_one_asks_again(
    code: str, cluster: Cluster, hub: HubData, applied: Callable[..., None]
) -> None:
    owner, cause, cure = FINAL[code]
    cause(hub)
    command = ("sh", "-c", "hello; sleep 1000")
    pods = {policy: f"{code}-{policy}".lower() for policy in POLICIES}
    for policy, name in pods.items():
        applied(flox_pod(name, f"{owner}/tool", *command, restartPolicy=policy))
    applied(_deployment(code, f"{owner}/tool", command))

    for policy, name in pods.items():
        cluster.wait_until(functools.partial(_has_ended, cluster, name), what=f"{name} has ended")
        end = _end(cluster, name)
        assert end["reason"] == "StartError"
        assert f"environment {owner}/tool" in end["message"]
        assert f"(code {code})" in end["message"]
        if policy == "Never":
            # The phase follows the container's end at the kubelet's next look.
            cluster.wait_until(functools.partial(_is_over, cluster, name), what=f"{name} is over")
        else:
            assert not _is_over(cluster, name)
    before = {name: _pod(cluster, name)["metadata"]["uid"] for name in pods.values()}
    replicas = _uids(cluster, code)

    cure(hub)
    for policy in ("Always", "OnFailure"):
        cluster.kubectl(
            "wait",
            "--for=condition=Ready",
            f"pod/{pods[policy]}",
            f"--timeout={PATIENCE_S:.0f}s",
            timeout=PATIENCE_S + 10,
        )
    cluster.rollout(f"deployment/{code}", timeout=PATIENCE_S)
    assert _pod(cluster, pods["Never"])["status"]["phase"] == "Failed"
    assert {name: _pod(cluster, name)["metadata"]["uid"] for name in pods.values()} == before
    assert _uids(cluster, code) == replicas, "the Deployment's pod is the same one"


def test_a_refusal_that_may_pass_fails_the_sandbox_and_the_kubelet_tries_again_under_every_policy(
    cluster: Cluster, hub: HubData, applied: Callable[..., None]
) -> None:
    _publish(hub, "fresh")
    hub.break_with("status", status=503)
    try:
        pods = [f"network-{policy}".lower() for policy in POLICIES]
        for policy, name in zip(POLICIES, pods, strict=True):
            applied(flox_pod(name, "fresh/tool", "sh", "-c", "hello; sleep 1000", restartPolicy=policy))
        for name in pods:
            cluster.wait_until(functools.partial(_refused, cluster, name), what=f"{name} is refused")
            pod = _pod(cluster, name)
            assert pod["status"]["phase"] == "Pending"
            assert not _end(cluster, name)
    finally:
        hub.repair()
    for name in pods:
        cluster.kubectl(
            "wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={PATIENCE_S:.0f}s", timeout=PATIENCE_S + 10
        )


def _pod(cluster: Cluster, name: str) -> Object:
    found: Object = cluster.get("pod", name)
    return found


def _has_ended(cluster: Cluster, name: str) -> bool:
    return bool(_end(cluster, name))


def _is_over(cluster: Cluster, name: str) -> bool:
    return bool(_pod(cluster, name)["status"]["phase"] == "Failed")


def _end(cluster: Cluster, name: str) -> Object:
    """How the container of a pod ended last; empty if it never did."""
    for status in _pod(cluster, name)["status"].get("containerStatuses", []):
        for state in (status["state"], status["lastState"]):
            if "terminated" in state:
                ended: Object = state["terminated"]
                return ended
    return {}


def _refused(cluster: Cluster, name: str) -> bool:
    fields = f"involvedObject.name={name},reason=FailedCreatePodSandBox"
    events = cluster.get("events", "--field-selector", fields)["items"]
    return any("(code network)" in event["message"] for event in events)


def _deployment(name: str, environment: str, command: tuple[str, ...]) -> Object:
    pod = flox_pod(name, environment, *command)
    labelled = {key: pod["metadata"][key] for key in ("labels", "annotations")}
    template = {"metadata": labelled, "spec": pod["spec"]}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def _uids(cluster: Cluster, app: str) -> list[str]:
    return [pod["metadata"]["uid"] for pod in cluster.get("pods", "--selector", f"app={app}")["items"]]
