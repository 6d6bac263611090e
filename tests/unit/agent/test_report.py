"""The reports to the API server: what is asked of it, in which order, and how often."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flox_node.agent import exchange, report
from flox_node.agent.exchange import Event, Granted, NodeState, PodNews, Reported
from flox_node.agent.report import Reporter
from flox_node.environments import notices
from flox_node.environments.notices import Notice
from flox_node.errors import OutsideError
from flox_node.kube import slots
from flox_node.kube.api import ApiError, Object
from flox_node.kube.names import ENABLED, Happening, Reason
from flox_node.kube.slots import PROVEN, SLOTS

LIVE = NodeState(
    Reason.INSTALLED,
    "live",
    live=True,
    target="p",
    share="10%",
    identity="boot",
    platform="plain",
    versions={"shim": "1"},
    event=Event(3, Happening.INSTALLED, "live"),
)
WAITING = NodeState(Reason.WAITING, "waiting", slot="wish", target="p")


class Cluster:
    """One node, its leases, and a list of what was asked. What it does not know is a 404."""

    def __init__(self) -> None:
        self.node: Object = {"metadata": {"name": "n", "uid": "u"}, "spec": {}, "status": {}}
        self.leases: dict[str, Object] = {}
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.failing: list[ApiError] = []
        self.refusing: dict[str, ApiError] = {}

    def request(self, method: str, path: str, body: Any = None, **_: object) -> Object:
        self.asked.append(f"{method} {path}")
        self.bodies.append(copy.deepcopy(body))
        if path in self.refusing:
            raise self.refusing[path]
        if method == "PATCH" and path.endswith("/n") and self.failing:
            raise self.failing.pop(0)
        match method, path:
            case "GET", "/api/v1/nodes/n":
                return copy.deepcopy(self.node)
            case (("PATCH" | "POST"), _) if "leases" not in path:
                return {}
            case (("PUT" | "POST"), _):
                self.leases[body["metadata"]["name"]] = {
                    **body,
                    "metadata": {**body["metadata"], "resourceVersion": "1"},
                }
                return self.leases[body["metadata"]["name"]]
            case "GET", _ if path.endswith("/daemonsets/flox-node"):
                return {"status": {"desiredNumberScheduled": 30}}
            case "GET", _ if (name := path.rpartition("/")[2]) in self.leases:
                return self.leases[name]
        raise ApiError("no", status=404, reason="NotFound")

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        yield from ()


class Node:
    """The reporter of a node whose states follow each other whenever the reporter waits."""

    def __init__(self, folder: Path) -> None:
        self.own, self.other = folder / "reporter", folder / "node"
        self.own.mkdir()
        self.other.mkdir()
        self.cluster = Cluster()
        self.next: list[NodeState] = []
        self.grants: list[str] = []
        self.reporter = Reporter(self.cluster, "n", "flox-node", own=self.own, other=self.other, sleep=self.sleep)

    def say(self, state: NodeState) -> None:
        exchange.write(self.other, "state.json", state)

    def sleep(self, seconds: float) -> None:
        grant = exchange.read(self.own, "slot.json", Granted)
        self.grants.append(grant.slot if grant else "")
        if self.next:
            self.say(self.next.pop(0))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_an_install_is_told_with_few_requests_and_in_this_order(node: Node) -> None:
    node.say(WAITING)
    node.next = [LIVE]
    node.reporter.run()
    lease, slot = "/apis/coordination.k8s.io/v1/namespaces/flox-node/leases", "flox-node-slot-0"
    assert node.grants == ["wish"]
    asked = node.cluster.asked
    assert asked[:8] == [
        f"GET {lease}/{slot}",
        f"POST {lease}",
        "PATCH /api/v1/nodes/n/status",
        "GET /api/v1/nodes/n",
        "PATCH /api/v1/nodes/n",
        "PATCH /api/v1/nodes/n/status",
        "POST /api/v1/namespaces/default/events",
        "GET /apis/apps/v1/namespaces/flox-node/daemonsets/flox-node",
    ]
    assert asked[8] == f"PUT {lease}/{slot}"
    assert len(asked) <= 12
    given_back = node.cluster.leases[slot]
    assert given_back["spec"]["holderIdentity"] == ""
    assert given_back["metadata"]["annotations"] == {"flox.dev/proven": "p", "flox.dev/slots": "3"}


def test_only_who_was_first_says_how_many_slots_there_are(node: Node) -> None:
    first = {PROVEN: "p", SLOTS: "30"}
    node.cluster.leases["flox-node-slot-0"] = {"metadata": {"annotations": first, "resourceVersion": "1"}, "spec": {}}
    mine = slots.name_for("n", "p", slots.parse("flox-node-slot-0", node.cluster.leases["flox-node-slot-0"]))
    assert not mine.endswith("-0")
    node.say(WAITING)
    node.next = [LIVE]
    node.reporter.run()
    assert node.cluster.leases[mine]["metadata"]["annotations"] == {PROVEN: "p", SLOTS: "1"}
    assert node.cluster.leases["flox-node-slot-0"]["metadata"]["annotations"] == first
    assert not any("daemonsets" in asked for asked in node.cluster.asked)


def test_the_label_is_set_only_when_the_handler_is_live(node: Node) -> None:
    failed = NodeState(Reason.ROLLED_BACK, "no", target="p")
    node.say(WAITING)
    node.next = [failed]
    node.reporter.run()
    assert not any(ENABLED.replace("/", "~1") in str(body) for body in node.cluster.bodies)
    lease = node.cluster.leases["flox-node-slot-0"]
    assert lease["spec"]["holderIdentity"] == ""
    assert lease["metadata"]["annotations"]["flox.dev/proven"] == ""


def test_what_was_told_is_not_told_again(node: Node) -> None:
    node.say(LIVE)
    node.reporter.run()
    node.cluster.node["metadata"] |= {
        "labels": {ENABLED: "true"},
        "annotations": {"flox.dev/shim-version": "1", "flox.dev/platform": "plain"},
    }
    [told] = [body for body in node.cluster.bodies if isinstance(body, dict) and "status" in body]
    node.cluster.node["status"]["conditions"] = told["status"]["conditions"]
    node.cluster.asked.clear()
    node.reporter.run()
    assert node.cluster.asked == ["GET /api/v1/nodes/n"]


def test_a_change_by_somebody_else_in_between_is_read_and_the_patch_tried_again(node: Node) -> None:
    node.cluster.failing = [ApiError("test failed", status=422, reason="Invalid")]
    node.say(LIVE)
    node.reporter.run()
    assert node.cluster.asked.count("PATCH /api/v1/nodes/n") == 2


def test_what_is_forbidden_is_an_error_and_not_told(node: Node) -> None:
    node.cluster.failing = [ApiError("no", status=403, reason="Forbidden")]
    node.say(LIVE)
    with pytest.raises(ApiError):
        node.reporter.run()
    assert exchange.read(node.own, "reported.json", Reported) is None


def test_an_event_that_is_there_already_is_no_error(node: Node) -> None:
    known = node.cluster.request

    def request(method: str, path: str, body: Any = None, **more: object) -> Object:
        if path.endswith("/events"):
            raise ApiError("exists", status=409, reason="AlreadyExists")
        return known(method, path, body, **more)

    node.cluster.request = request  # type: ignore[method-assign]
    node.say(LIVE)
    node.reporter.run()
    told = exchange.read(node.own, "reported.json", Reported)
    assert told == Reported(LIVE.digest, 3)


def test_a_kubelet_that_does_not_report_the_handler_keeps_the_label_away(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_HANDLER_WAIT_S", 0.0)
    node.cluster.node["status"]["runtimeHandlers"] = [{"name": ""}, {"name": "runc"}]
    node.say(LIVE)
    with pytest.raises(OutsideError, match="kubelet does not report"):
        node.reporter.run()
    assert not any(ENABLED.replace("/", "~1") in str(body) for body in node.cluster.bodies)


def test_a_node_that_is_ready_no_more_is_told_so_before_it_waits_for_a_slot(node: Node) -> None:
    node.say(LIVE)
    node.reporter.run()
    node.cluster.asked.clear()
    node.say(WAITING)
    node.next = [LIVE]
    node.reporter.run()
    first_lease = next(index for index, text in enumerate(node.cluster.asked) if "leases" in text)
    assert "PATCH /api/v1/nodes/n/status" in node.cluster.asked[:first_lease]


def test_a_reporter_that_is_ended_while_the_node_works_keeps_the_slot_and_else_gives_it_back(node: Node) -> None:
    def end(_: float) -> None:
        raise SystemExit

    for reason, holder in ((Reason.INSTALLING, "n"), (Reason.WAITING, "")):
        node.cluster.leases.clear()
        node.say(NodeState(reason, "", slot="wish", target="p"))
        reporter = Reporter(node.cluster, "n", "flox-node", own=node.own, other=node.other, sleep=end)
        with pytest.raises(SystemExit):
            reporter.run()
        assert node.cluster.leases["flox-node-slot-0"]["spec"]["holderIdentity"] == holder
        assert exchange.read(node.own, "slot.json", Granted) == Granted("")


@pytest.mark.parametrize(
    ("handlers", "text"),
    [
        ([{"name": ""}, {"name": "flox"}], ""),
        ([{"name": ""}, {"name": "runc"}], "does not report the handler flox"),
        (None, "reports no handlers"),
    ],
)
def test_alone_it_follows_what_the_kubelet_reports(handlers: Any, text: str, tmp_path: Path) -> None:
    cluster = Cluster()
    theirs = {"key": "theirs", "effect": "NoSchedule"}
    cluster.node["spec"]["taints"] = [theirs, {"key": "flox.dev/not-ready", "effect": "NoSchedule"}]
    cluster.node["status"]["runtimeHandlers"] = handlers
    reporter = Reporter(cluster, "n", "flox-node", folder=tmp_path)
    if text:
        with pytest.raises(OutsideError, match=text):
            reporter.alone()
        assert "PATCH /api/v1/nodes/n" not in cluster.asked
    else:
        reporter.alone()
        patch = cluster.bodies[cluster.asked.index("PATCH /api/v1/nodes/n")]
        assert patch[-1] == {"op": "replace", "path": "/spec/taints", "value": [theirs]}
        assert {"op": "add", "path": "/metadata/labels/flox.dev~1enabled", "value": "true"} in patch
    (condition,) = cluster.bodies[-1]["status"]["conditions"]
    assert condition["status"] == ("False" if text else "True")
    assert text in condition["message"]
    assert not any("lease" in path for path in cluster.asked)


NOTICE = Notice("ci", "runner-1", "uid-1", "fetching", "environment acme/x: it is fetched", 0x1F)


def told(node: Node) -> list[Any]:
    asked = zip(node.cluster.asked, node.cluster.bodies, strict=True)
    return [body for request, body in asked if request == "POST /api/v1/namespaces/ci/events"]


def test_a_pod_is_told_once_what_the_node_has_to_say_to_it(node: Node) -> None:
    node.say(LIVE)
    exchange.write(node.other, "pods.json", PodNews((NOTICE,)))
    node.reporter.run()
    node.reporter.run()
    (body,) = told(node)
    assert body["metadata"] == {"name": "runner-1.flox-node.1f", "namespace": "ci"}
    assert body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "ci",
        "name": "runner-1",
        "uid": "uid-1",
    }
    assert (body["reason"], body["type"], body["source"]["host"]) == ("FloxFetching", "Warning", "n")
    exchange.write(node.other, "pods.json", PodNews((NOTICE, dataclasses.replace(NOTICE, at_ms=0x2F))))
    node.reporter.run()
    assert [body["metadata"]["name"] for body in told(node)] == ["runner-1.flox-node.1f", "runner-1.flox-node.2f"]


def test_a_pod_is_told_that_its_hub_is_away(node: Node) -> None:
    node.say(LIVE)
    exchange.write(node.other, "pods.json", PodNews((dataclasses.replace(NOTICE, kind=notices.HUB_UNREACHABLE),)))
    node.reporter.run()
    (body,) = told(node)
    assert (body["reason"], body["type"]) == ("FloxHubUnreachable", "Warning")
    assert body["message"] == NOTICE.message


def test_a_pod_is_told_while_the_node_waits_for_a_slot(node: Node) -> None:
    node.say(WAITING)
    node.next = [LIVE]
    sleep = node.sleep

    def later(seconds: float) -> None:
        exchange.write(node.other, "pods.json", PodNews((NOTICE,)))
        sleep(seconds)

    node.next = [WAITING, LIVE]
    node.reporter = Reporter(node.cluster, "n", "flox-node", own=node.own, other=node.other, sleep=later)
    node.reporter.run()
    assert len(told(node)) == 1


@pytest.mark.parametrize(("status", "again"), [(403, 0), (404, 0), (500, 1)])
def test_what_the_api_server_refuses_to_take_is_not_offered_again(node: Node, status: int, again: int) -> None:
    node.say(LIVE)
    exchange.write(node.other, "pods.json", PodNews((NOTICE,)))
    node.cluster.refusing = {"/api/v1/namespaces/ci/events": ApiError("no", status=status, reason="")}
    if again:
        with pytest.raises(ApiError):
            node.reporter.run()
    else:
        node.reporter.run()
    node.cluster.refusing = {}
    node.reporter.run()
    assert len(told(node)) == 1 + again
