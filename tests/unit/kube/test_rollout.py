"""How far a node is, from the objects of the API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flox_node.kube.api import Object
from flox_node.kube.names import Reason
from flox_node.kube.rollout import (
    NodeRow,
    Rollout,
    State,
    mode_of,
    newest_revision,
    node_of,
    pod_trouble,
    rollout,
    row,
    selects,
    with_mode,
)
from tests.unit.kube.fake_cluster import node, pod

LIVE = node("a", status="True", reason="Installed")
OLD, BUSY = pod("p", "a", revision="r0"), pod("p", "a", ready=False)
PULLING = {"name": "node", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}}
CRASHED = {
    "name": "node",
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "No such file: /payload"}},
}


def told(reason: str) -> Object:
    """A node that is not ready, for this reason."""
    return node("a", status="False", reason=reason)


def daemon_set(mode: str = "install", **spec: Any) -> Object:
    names = ("node", "reporter")
    containers = [{"name": name, "image": "flox-node:1", "args": [name, f"--mode={mode}"]} for name in names]
    return {
        "metadata": {"name": "flox-node", "uid": "ds", "generation": 2},
        "spec": {"template": {"spec": {"containers": containers, **spec}}},
        "status": {"observedGeneration": 2},
    }


def revision(name: str, number: int, owner: str = "ds") -> Object:
    metadata = {"name": name, "labels": {"controller-revision-hash": name}, "ownerReferences": [{"uid": owner}]}
    return {"metadata": metadata, "revision": number}


@pytest.mark.parametrize(
    ("found", "its_pod", "mode", "state", "reason"),
    [
        (node("a"), None, "install", State.WAITING, "NoPod"),
        (node("a"), OLD, "install", State.WAITING, "OldPod"),
        (node("a"), BUSY, "install", State.WORKING, "Starting"),
        (LIVE, pod("p", "a"), "install", State.READY, "Installed"),
        # What the former version's pod said does not hold for this one's.
        (LIVE, BUSY, "install", State.WORKING, "Starting"),
        (LIVE, OLD, "install", State.WAITING, "OldPod"),
        (told("Refused"), pod("p", "a"), "install", State.REFUSED, "Refused"),
        (told("Refused"), BUSY, "install", State.FAILED, "Refused"),
        (told("Installing"), BUSY, "install", State.WORKING, "Installing"),
        (told("RolledBack"), BUSY, "install", State.FAILED, "RolledBack"),
        (node("a", ready=False, status="True"), pod("p", "a"), "install", State.DOWN, "NodeNotReady"),
        (node("a"), pod("p", "a", containerStatuses=[PULLING]), "install", State.FAILED, "ImagePullBackOff"),
        (node("a"), pod("p", "a"), "uninstall", State.REVERTED, "Uninstalled"),
        (told("InUse"), BUSY, "uninstall", State.FAILED, "InUse"),
    ],
)
def test_where_a_node_stands(found: Object, its_pod: Object | None, mode: str, state: State, reason: str) -> None:
    stands = row(found, its_pod, "r1", mode)
    assert (stands.state, stands.reason) == (state, reason)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_a_node_that_is_not_ready_is_either_on_its_way_or_a_failure(reason: Reason) -> None:
    assert row(told(reason), BUSY, "r1", "install").state in (State.WORKING, State.FAILED)


def test_versions_are_those_of_the_annotations_and_else_of_the_node() -> None:
    found = node("a")
    assert row(found, None, "r1", "install").containerd == "2.1.4"
    found["metadata"]["annotations"] = {
        "flox.dev/payload": "p1",
        "flox.dev/shim-version": "0.1.0",
        "flox.dev/flox-version": "1.9.0",
        "flox.dev/containerd-version": "1.7.24",
        "flox.dev/platform": "k3s",
    }
    versions = row(found, None, "r1", "install")
    assert (versions.platform, versions.containerd) == ("k3s", "1.7.24")
    assert (versions.payload, versions.shim, versions.flox) == ("p1", "0.1.0", "1.9.0")


def test_a_pod_that_is_on_its_way_out_does_not_hide_its_successor() -> None:
    leaving = pod("old", "a", revision="r0")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for pods in ([leaving, pod("new", "a")], [pod("new", "a"), leaving]):
        found = rollout(daemon_set(), [revision("r1", 1)], [node("a", status="True", reason="Installed")], pods)
        assert found.nodes[0].state is State.READY


def test_nodes_that_the_daemon_set_does_not_select_are_left_out() -> None:
    found = rollout(daemon_set(nodeSelector={"pool": "flox"}), [], [node("a"), node("b", labels={"pool": "flox"})], [])
    assert [each.name for each in found.nodes] == ["b"]


@pytest.mark.parametrize(
    ("expressions", "labels", "selected"),
    [
        ([{"key": "flox.dev/exclude", "operator": "DoesNotExist"}], {}, True),
        ([{"key": "flox.dev/exclude", "operator": "DoesNotExist"}], {"flox.dev/exclude": ""}, False),
        ([{"key": "pool", "operator": "In", "values": ["a", "b"]}], {"pool": "b"}, True),
        ([{"key": "pool", "operator": "NotIn", "values": ["a"]}], {"pool": "a"}, False),
        ([{"key": "pool", "operator": "NotIn", "values": ["a"]}], {}, True),
        ([{"key": "pool", "operator": "Exists"}], {}, False),
        ([{"key": "generation", "operator": "Gt", "values": ["3"]}], {"generation": "4"}, True),
        ([{"key": "generation", "operator": "Lt", "values": ["3"]}], {"generation": "new"}, False),
    ],
)
def test_the_affinity_of_the_daemon_set_is_followed(
    expressions: list[Object], labels: dict[str, str], selected: bool
) -> None:
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    spec = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}
    assert selects(spec, node("a", labels=labels)) is selected


def test_an_empty_term_selects_nothing() -> None:
    terms: Object = {"nodeSelectorTerms": [{}]}
    spec = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}
    assert not selects(spec, node("a"))


def test_the_newest_revision_is_the_highest_of_the_daemon_set_s_own() -> None:
    revisions = [revision("r1", 1), revision("r2", 3), revision("r3", 2), revision("foreign", 9, owner="other")]
    assert newest_revision(daemon_set(), revisions) == "r2"


def test_no_pod_is_of_a_template_that_the_controller_has_not_seen() -> None:
    changed = daemon_set()
    changed["metadata"]["generation"] = 3
    assert newest_revision(changed, [revision("r1", 1)]) == ""
    found = rollout(changed, [revision("r1", 1)], [node("a", status="True", reason="Installed")], [pod("p", "a")])
    assert found.nodes[0].state is State.WAITING


def test_a_pod_that_no_node_takes_is_still_told_with_its_node() -> None:
    pending = pod("p", "")
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    pending["spec"]["affinity"] = {"nodeAffinity": required}
    pending["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "Insufficient memory."}]}
    assert node_of(pending) == "a"
    found = rollout(daemon_set(), [revision("r1", 1)], [node("a")], [pending])
    assert (found.nodes[0].state, found.nodes[0].message) == (State.FAILED, "Insufficient memory.")


def test_a_crash_is_told_with_its_last_words() -> None:
    trouble = pod_trouble(pod("p", "a", ready=False, containerStatuses=[CRASHED]))
    assert trouble is not None
    assert trouble[0] == "CrashLoopBackOff"
    assert "No such file: /payload" in trouble[1]
    assert "1 (Error)" in trouble[1]


def test_the_mode_is_an_argument_and_a_change_of_it_keeps_the_others() -> None:
    assert mode_of(daemon_set("uninstall")) == "uninstall"
    assert with_mode(["node", "--mode=install", "--verbose"], "uninstall") == ["node", "--verbose", "--mode=uninstall"]
    assert with_mode(["node", "--mode=uninstall"], "uninstall") == ["node", "--mode=uninstall"]


def test_the_whole_is_as_far_as_the_node_that_needs_most() -> None:
    def whole(*states: State) -> State:
        return Rollout("install", "", tuple(NodeRow(str(state), state) for state in states)).state

    assert whole(State.READY, State.WORKING) is State.WORKING
    assert whole(State.READY, State.DOWN, State.FAILED) is State.FAILED
    assert whole(State.REFUSED, State.READY) is State.READY
    assert whole(State.REFUSED) is State.REFUSED
    assert whole() is State.READY


def test_nodes_that_were_down_before_are_not_waited_for() -> None:
    found = Rollout("install", "", (NodeRow("a", State.DOWN), NodeRow("b", State.DOWN), NodeRow("c", State.READY)))
    assert [each.name for each in found.open(leaving=["a"])] == ["b"]
    assert [each.name for each in found.open()] == ["a", "b"]


def test_the_reference_explains_every_state() -> None:
    rows = (Path(__file__).parents[3] / "docs/reference.md").read_text()
    assert all(f"\n| `{state}` | " in rows for state in State)
