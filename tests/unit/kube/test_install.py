"""Install and upgrade: versions, the options of a cluster, waiting, and how it ends."""

from __future__ import annotations

import pytest

from flox_node.errors import OutsideError, RefusedError
from flox_node.kube.api import ApiError
from flox_node.kube.apply import apply
from flox_node.kube.install import live_options, require_ready, require_supported
from flox_node.kube.manifests import Options, objects
from flox_node.kube.resources import NODES
from flox_node.kube.rollout import Rollout, State
from flox_node.kube.uninstall import switch
from flox_node.kube.waiting import Followed, follow, look
from tests.unit.kube.fake_api import FakeApi
from tests.unit.kube.fake_cluster import DAEMON_SET, FakeCluster, node

DEFAULTS = Options()
CHOSEN = Options(
    image="mirror/flox-node:1",
    node_selector={"pool": "flox"},
    overhead={"memory": "16Mi"},
    tolerations=({"key": "gpu", "operator": "Exists"},),
    settings="adopt = true\n",
    policy='inner_runtime = "/usr/sbin/runc"\n',
)


def installed(cluster: FakeCluster, options: Options = DEFAULTS, *, timeout: float = 100.0) -> Followed:
    list(apply(cluster, objects(options)))
    return follow(cluster, lambda _: None, timeout=timeout, clock=cluster.clock, sleep=cluster.sleep)


@pytest.mark.parametrize("version", ["1.31", "1.31+", "1.40", "2.0"])
def test_a_cluster_that_can_confine_the_pods_is_taken(version: str) -> None:
    require_supported(FakeApi(version))


@pytest.mark.parametrize("version", ["1.30", "1.29+"])
def test_an_older_cluster_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(RefusedError, match=rf"v{version[:4]}.*which node a token belongs to") as caught:
        require_supported(FakeApi(version))
    assert caught.value.exit_code == 3


def test_every_node_becomes_ready_and_each_look_is_shown() -> None:
    cluster = FakeCluster("a", "b", "c")
    looks: list[Rollout] = []
    list(apply(cluster, objects()))
    followed = follow(cluster, looks.append, timeout=100, clock=cluster.clock, sleep=cluster.sleep)
    require_ready(followed)
    assert [each.state for each in followed.rollout.nodes] == [State.READY] * 3
    assert [sum(row.state is State.READY for row in look.nodes) for look in looks] == [0, 1, 2, 3]


def test_nodes_that_refuse_are_no_failure_unless_there_are_no_others() -> None:
    require_ready(installed(FakeCluster("a", "b", refusing=("b",))))
    with pytest.raises(RefusedError, match=r"a \(refused, Refused: Bottlerocket") as caught:
        require_ready(installed(FakeCluster("a", refusing=("a",))))
    assert caught.value.exit_code == 3


def test_a_node_that_does_not_get_there_is_named_after_the_timeout() -> None:
    cluster = FakeCluster("a", "b", stuck=("b",))
    followed = installed(cluster, timeout=20)
    assert cluster.now <= 20
    with pytest.raises(OutsideError, match=r"1 of 2 nodes are not ready yet: b \(working, Starting") as caught:
        require_ready(followed)
    assert caught.value.exit_code == 9
    assert "cluster doctor" in caught.value.remedy


def test_a_node_that_was_down_before_is_not_waited_for_one_that_goes_down_is() -> None:
    cluster = FakeCluster("a")
    cluster.put(NODES.path("b"), node("b", ready=False))
    followed = installed(cluster)
    require_ready(followed)
    assert [row.state for row in followed.rollout.nodes] == [State.READY, State.DOWN]

    falling = FakeCluster("a", "b", stuck=("b",))

    def sleep(seconds: float) -> None:
        falling.sleep(seconds)
        falling.objects[NODES.path("b")]["status"]["conditions"][0]["status"] = "Unknown"

    list(apply(falling, objects()))
    followed = follow(falling, lambda _: None, timeout=10, clock=falling.clock, sleep=sleep)
    with pytest.raises(OutsideError, match=r"b \(down, NodeNotReady"):
        require_ready(followed)


def test_an_api_server_that_is_away_for_a_while_is_waited_for() -> None:
    cluster = FakeCluster("a")
    list(apply(cluster, objects()))
    cluster.down = 3
    require_ready(follow(cluster, lambda _: None, timeout=20, clock=cluster.clock, sleep=cluster.sleep))

    cluster.down = 1000
    with pytest.raises(ApiError, match="does not answer"):
        follow(cluster, lambda _: None, timeout=20, clock=cluster.clock, sleep=cluster.sleep)


def test_a_cluster_where_no_node_is_selected_is_no_failure() -> None:
    followed = installed(FakeCluster("a"), Options(node_selector={"pool": "flox"}))
    require_ready(followed)
    assert followed.rollout.nodes == ()


def test_a_daemon_set_that_goes_away_in_the_meantime_ends_the_waiting() -> None:
    cluster = FakeCluster("a", stuck=("a",))
    list(apply(cluster, objects()))

    def sleep(seconds: float) -> None:
        cluster.now += seconds
        cluster.objects.pop(DAEMON_SET, None)

    with pytest.raises(OutsideError, match="removed by somebody else"):
        follow(cluster, lambda _: None, timeout=20, clock=cluster.clock, sleep=sleep)


def test_an_upgrade_keeps_what_was_chosen() -> None:
    cluster = FakeCluster()
    cluster.put(NODES.path("a"), node("a", labels={"pool": "flox"}))
    installed(cluster, CHOSEN)

    options = live_options(cluster, "mirror/flox-node:2")
    before, after = objects(CHOSEN), objects(options)
    assert before[-1]["kind"] == "DaemonSet"
    assert after[:-1] == before[:-1]
    spec = after[-1]["spec"]["template"]["spec"]
    assert {each["image"] for each in spec["containers"]} == {"mirror/flox-node:2"}
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "flox"}


def test_an_upgrade_waits_for_the_new_pods_and_not_for_the_old_ones() -> None:
    cluster = FakeCluster("a", "b")
    installed(cluster)
    list(apply(cluster, objects(live_options(cluster, "flox-node:2"))))
    seen = look(cluster)
    assert seen is not None
    assert [(row.state, row.reason) for row in seen.nodes] == [(State.WAITING, "OldPod")] * 2
    require_ready(follow(cluster, lambda _: None, timeout=100, clock=cluster.clock, sleep=cluster.sleep))


def test_nothing_is_upgraded_where_nothing_is_installed_or_it_is_on_its_way_out() -> None:
    cluster = FakeCluster("a")
    with pytest.raises(RefusedError, match="not installed"):
        live_options(cluster, "flox-node:2")
    switch(cluster, installed(cluster).rollout)
    with pytest.raises(RefusedError, match="being uninstalled"):
        live_options(cluster, "flox-node:2")
