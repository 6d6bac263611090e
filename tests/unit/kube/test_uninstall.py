"""Uninstall: refused while in use, node by node, resumable, and nothing of others' goes."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from flox_node.errors import InUseError, OutsideError, RefusedError
from flox_node.kube.api import Object
from flox_node.kube.apply import apply
from flox_node.kube.manifests import Options, objects
from flox_node.kube.names import ENABLED
from flox_node.kube.resources import CONFIG_MAPS, NODES, PODS, RUNTIME_CLASSES, path_of
from flox_node.kube.rollout import Rollout, State
from flox_node.kube.uninstall import mode_patch, uninstall, with_purge
from flox_node.kube.waiting import follow
from tests.unit.kube.fake_cluster import DAEMON_SET, FakeCluster, flox_pod, node


def a_cluster(*names: str, **given: Any) -> FakeCluster:
    """One with flox-node on all its nodes."""
    cluster = FakeCluster(*names, **given)
    list(apply(cluster, objects()))
    follow(cluster, lambda _: None, timeout=100, clock=cluster.clock, sleep=cluster.sleep)
    cluster.requests.clear()
    return cluster


def run(cluster: FakeCluster, said: list[str] | None = None, **given: Any) -> Rollout | None:
    given = {"timeout": 100.0, "show": lambda _: None, **given}
    steps = [] if said is None else said
    return uninstall(cluster, say=steps.append, clock=cluster.clock, sleep=cluster.sleep, **given)


def left(cluster: FakeCluster) -> set[str]:
    return {path_of(each) for each in objects(Options(pod_monitor=True))} & cluster.objects.keys()


def writes(cluster: FakeCluster) -> list[tuple[str, str]]:
    return [(method, path) for method, path, _ in cluster.requests if method != "GET"]


def test_labels_then_the_mode_then_the_objects_the_namespace_last() -> None:
    cluster = a_cluster("a", "b")
    said: list[str] = []
    found = run(cluster, said)
    assert found is not None
    assert [(row.name, row.state) for row in found.nodes] == [("a", State.REVERTED), ("b", State.REVERTED)]
    assert left(cluster) == set()
    assert writes(cluster)[:4] == [
        ("PATCH", NODES.path("a")),
        ("PATCH", NODES.path("b")),
        ("PATCH", DAEMON_SET),
        ("DELETE", DAEMON_SET),
    ]
    assert writes(cluster)[-1] == ("DELETE", "/api/v1/namespaces/flox-node")
    assert said[:3] == [
        "label removed from a",
        "label removed from b",
        "DaemonSet flox-node told to revert its nodes",
    ]
    assert said[-1] == "Namespace flox-node deleted"


def test_nothing_happens_while_flox_pods_run() -> None:
    cluster = a_cluster("a")
    cluster.put(RUNTIME_CLASSES.path("quick"), {"metadata": {"name": "quick"}, "handler": "flox"})
    for name, pod in {
        "web": flox_pod("web", "a"),
        "next": flox_pod("next", phase="Pending"),
        "other-name": flox_pod("other-name", "a", runtime_class="quick"),
        "done": flox_pod("done", "a", phase="Succeeded"),
        "plain": flox_pod("plain", "a", runtime_class=None),
    }.items():
        cluster.put(PODS.path(name, namespace="default"), pod)
    before = dict(cluster.objects)

    with pytest.raises(InUseError) as caught:
        run(cluster)
    assert caught.value.exit_code == 6
    assert caught.value.cause == (
        "3 pods need the handler flox: default/next (on no node yet), default/other-name (a), default/web (a)."
    )
    assert writes(cluster) == []
    assert cluster.objects == before


def test_nodes_of_an_image_are_not_reverted_by_the_reporter_alone_and_nobody_is_told_so() -> None:
    cluster = a_cluster("a")
    (reporter,) = (
        each
        for each in cluster.objects[DAEMON_SET]["spec"]["template"]["spec"]["containers"]
        if each["name"] == "reporter"
    )
    cluster.objects[DAEMON_SET]["spec"]["template"]["spec"]["containers"] = [
        {**reporter, "args": ["reporter", "--alone"]}
    ]
    with pytest.raises(RefusedError, match="does not revert them: a") as caught:
        run(cluster)
    assert "daemonset/flox-node.yaml" in caught.value.remedy
    assert writes(cluster) == []
    said: list[str] = []
    run(cluster, said, abandon=True)
    assert said[:2] == ["a left installed", "label removed from a"]
    assert left(cluster) == set()


@pytest.mark.parametrize("after", range(1, 30))
def test_a_run_that_is_cut_short_is_finished_by_the_next(after: int) -> None:
    class Cut(BaseException):
        pass

    cluster = a_cluster("a", "b")
    request, asked = cluster.request, 0

    def cut(method: str, path: str, *arguments: Any, **given: Any) -> Any:
        nonlocal asked
        answer = request(method, path, *arguments, **given)
        asked += method != "GET"
        if asked == after and method != "GET":
            raise Cut
        return answer

    cluster.request = cut  # type: ignore[method-assign]
    try:
        run(cluster)
    except Cut:
        cluster.request = request  # type: ignore[method-assign]
        run(cluster)
    assert left(cluster) == set()
    assert ENABLED not in cluster.objects[NODES.path("a")]["metadata"]["labels"]


def test_a_node_that_is_down_is_named_and_keeps_the_daemon_set_but_not_the_other_nodes() -> None:
    cluster = a_cluster("a", "b")
    cluster.objects[NODES.path("b")]["status"]["conditions"][0]["status"] = "Unknown"

    with pytest.raises(OutsideError, match=r"1 of 2 nodes are not reverted: b \(NodeNotReady") as caught:
        run(cluster)
    assert caught.value.exit_code == 9
    assert "kubectl delete node" in caught.value.remedy
    assert cluster.now < 10  # nobody waits for a node that was down before
    assert DAEMON_SET in cluster.objects
    assert cluster.objects[DAEMON_SET]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 2

    cluster.objects.pop(NODES.path("b"))
    assert run(cluster) is not None
    assert left(cluster) == set()


def test_a_node_that_stays_in_the_way_is_named_after_the_timeout() -> None:
    cluster = a_cluster("a", "b")
    cluster.stuck.add("b")
    with pytest.raises(OutsideError, match=r"b \(Starting") as caught:
        run(cluster, timeout=20)
    assert "cluster doctor" in caught.value.remedy
    assert DAEMON_SET in cluster.objects


def test_where_nothing_is_installed_nothing_is_touched() -> None:
    cluster = FakeCluster("a")
    foreign = {"metadata": {"name": "flox"}, "handler": "flox"}
    cluster.put(RUNTIME_CLASSES.path("flox"), foreign)
    cluster.put(NODES.path("b"), node("b", labels={ENABLED: "true"}))
    cluster.put(PODS.path("web", namespace="default"), flox_pod("web", "b"))
    assert run(cluster) is None
    assert writes(cluster) == []


def test_nodes_that_nobody_could_revert_any_more_are_not_left_alone() -> None:
    cluster = a_cluster("a", "b")
    cluster.objects.pop(DAEMON_SET)
    with pytest.raises(RefusedError, match=r"still installed: a, b") as caught:
        run(cluster)
    assert "cluster install" in caught.value.remedy
    assert writes(cluster) == []


def test_installed_nodes_that_the_daemon_set_does_not_select_are_only_left_when_it_is_said() -> None:
    cluster = a_cluster("a", "b")
    cluster.objects[NODES.path("b")]["metadata"]["labels"]["flox.dev/exclude"] = ""
    with pytest.raises(RefusedError, match=r"does not select them: b") as caught:
        run(cluster)
    assert "--abandon" in caught.value.remedy
    assert writes(cluster) == []

    said: list[str] = []
    found = run(cluster, said, abandon=True)
    assert found is not None
    assert [row.name for row in found.nodes] == ["a"]
    assert said[0] == "b left installed"
    assert left(cluster) == set()


def test_purge_is_a_setting_that_the_nodes_read() -> None:
    cluster = a_cluster("a")
    path = CONFIG_MAPS.path("flox-node", namespace="flox-node")
    seen: list[bool] = []

    def show(_: Rollout) -> None:
        seen.append(tomllib.loads(cluster.objects[path]["data"]["settings.toml"])["purge"])

    run(cluster, purge=True, show=show)
    assert seen
    assert all(seen)


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "purge = false\n",
        "# purge = false\nadopt = true\n",
        'adopt = true\n[rollout]\nshare = "3"\n',
        "  purge=true",
        '"purge" = false\n',
        "[other]\npurge = 3\n",
        'text = """\npurge = false\n"""\n',
        "[purge]\nwell = 1\n",
    ],
)
def test_purge_is_set_among_the_other_settings(settings: str) -> None:
    expected = {**tomllib.loads(settings), "purge": True}
    assert tomllib.loads(with_purge(settings)) == expected
    assert all(line in with_purge(settings) for line in re.findall("#.*", settings))


def test_purge_is_set_where_the_settings_cannot_be_read_and_they_are_kept_as_a_comment() -> None:
    assert with_purge("adopt = yes\n[x\n") == "purge = true\n# adopt = yes\n# [x\n"


def test_nodes_of_a_daemon_set_that_takes_no_mode_are_not_taken_for_reverted() -> None:
    cluster = a_cluster("a")
    for container in cluster.objects[DAEMON_SET]["spec"]["template"]["spec"]["containers"]:
        container["args"] = [container["name"]]
    with pytest.raises(OutsideError, match="1 of 1 nodes are not reverted: a"):
        run(cluster)
    assert DAEMON_SET in cluster.objects


def test_what_somebody_added_to_the_daemon_set_stays() -> None:
    live: Object = {
        "spec": {
            "updateStrategy": {"type": "OnDelete"},
            "template": {"spec": {"containers": [{"args": ["node", "--mode=install", "--more"]}, {"name": "sidecar"}]}},
        },
        "status": {"desiredNumberScheduled": 40},
    }
    patch = mode_patch(live, ["a"])
    assert len(patch) == 3
    path = "/spec/template/spec/containers/0/args"
    assert patch[0] == {"op": "test", "path": path, "value": ["node", "--mode=install", "--more"]}
    assert patch[1] == {"op": "replace", "path": path, "value": ["node", "--more", "--mode=uninstall"]}
    # Pods that are only replaced when somebody deletes them would never be.
    assert patch[-1]["value"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2, "maxSurge": 0}}
    live["spec"]["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}
    assert mode_patch(live, [])[-1]["value"]["rollingUpdate"]["maxUnavailable"] == 4
