"""Slots: one node first, then a share; nobody waits for ever, and nobody takes what is held."""

import copy
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flox_node.kube import slots
from flox_node.kube.api import ApiError, Object
from flox_node.kube.slots import DURATION_S, Slot, Slots, name_for, parse


class Leases:
    """The leases of one namespace, with optimistic locking and watches, as an API server has them."""

    def __init__(self) -> None:
        self.leases: dict[str, Object] = {}
        self.requests = 0
        self._version = 0
        self._changed = threading.Condition()

    def request(self, method: str, path: str, body: Any = None, **_: object) -> Object:
        with self._changed:
            self.requests += 1
            name = body["metadata"]["name"] if method == "POST" else path.rpartition("/")[2]
            old = self.leases.get(name)
            if method == "POST" and old is not None:
                raise ApiError("exists", status=409, reason="AlreadyExists")
            if method != "POST" and old is None:
                raise ApiError("none", status=404, reason="NotFound")
            if method == "GET":
                assert old is not None
                return copy.deepcopy(old)
            if old is not None and body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                raise ApiError("conflict", status=409, reason="Conflict")
            self._version += 1
            lease: Object = copy.deepcopy(body)
            lease["metadata"]["resourceVersion"] = str(self._version)
            self.leases[name] = lease
            self._changed.notify_all()
            return copy.deepcopy(lease)

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        name = query["fieldSelector"].removeprefix("metadata.name=")
        seen = int(query["resourceVersion"] or 0)
        end = time.monotonic() + timeout_s
        self.requests += 1
        while (left := end - time.monotonic()) > 0:
            with self._changed:
                lease = self.leases.get(name)  # of what is not there, nothing is told until it is
                version = int(lease["metadata"]["resourceVersion"]) if lease else 0
                if version <= seen:
                    self._changed.wait(min(left, 0.05))
                    continue
                seen, event = version, {"type": "MODIFIED", "object": copy.deepcopy(lease)}
            yield event


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_PAUSE_S", 0.05)
    monkeypatch.setattr(slots, "_TICK_S", 0.05)


def moment(seconds_ago: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")


def held(name: str, holder: str, seconds_ago: float = 0) -> Object:
    return {
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"holderIdentity": holder, "renewTime": moment(seconds_ago), "leaseDurationSeconds": DURATION_S},
    }


def test_the_first_slot_is_made_by_whoever_needs_it_first() -> None:
    api = Leases()
    taken = Slots(api, "ns", "a").acquire("t", lambda: True)
    assert taken is not None
    assert api.leases["flox-node-slot-0"]["spec"]["holderIdentity"] == "a"


def test_a_slot_that_is_held_is_waited_for_and_taken_when_it_is_given_back() -> None:
    api = Leases()
    first, second = Slots(api, "ns", "a"), Slots(api, "ns", "b")
    taken = first.acquire("t", lambda: True)
    assert taken is not None
    got: list[Slot | None] = []
    waiting = threading.Thread(target=lambda: got.append(second.acquire("t", lambda: True)))
    waiting.start()
    time.sleep(0.3)
    assert not got
    first.release(taken)
    waiting.join()
    assert api.leases["flox-node-slot-0"]["spec"]["holderIdentity"] == "b"
    assert got[0] is not None


def test_a_slot_whose_holder_is_not_heard_of_any_more_is_taken() -> None:
    api = Leases()
    api.leases["flox-node-slot-0"] = held("flox-node-slot-0", "dead", DURATION_S + 1)
    assert Slots(api, "ns", "a").acquire("t", lambda: True) is not None


def test_a_slot_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    api = Leases()
    api.leases["flox-node-slot-0"] = held("flox-node-slot-0", "other")
    end = time.monotonic() + 0.3
    assert Slots(api, "ns", "a").acquire("t", lambda: time.monotonic() < end) is None


def test_a_node_that_holds_its_slot_already_has_it() -> None:
    api = Leases()
    api.leases["flox-node-slot-0"] = held("flox-node-slot-0", "a")
    assert Slots(api, "ns", "a").acquire("t", lambda: True) is not None


def test_one_node_first_and_then_a_share_of_them_at_a_time() -> None:
    api, running, most, before_proof = Leases(), set[str](), [0], [0]
    lock, order = threading.Lock(), list[str]()

    def node(name: str) -> None:
        mine = Slots(api, "ns", name)
        taken = mine.acquire("t", lambda: True)
        assert taken is not None
        with lock:
            running.add(name)
            order.append(name)
            most[0] = max(most[0], len(running))
            if len(order) == 1 or parse("", api.leases["flox-node-slot-0"]).proven != "t":
                before_proof[0] = max(before_proof[0], len(running))
        time.sleep(0.1)
        with lock:
            running.discard(name)
        mine.release(taken, proven="t", slots=3)

    threads = [threading.Thread(target=node, args=(f"n{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 12
    assert before_proof[0] == 1
    assert 1 < most[0] <= 3


def test_what_failed_on_the_first_node_is_tried_on_one_node_again() -> None:
    api = Leases()
    taken = Slots(api, "ns", "a").acquire("t", lambda: True)
    assert taken is not None
    Slots(api, "ns", "a").release(taken)
    lease = parse("flox-node-slot-0", api.leases["flox-node-slot-0"])
    assert lease.proven == ""
    assert name_for("b", "t", lease) == "flox-node-slot-0"


def test_a_slot_that_somebody_else_took_meanwhile_is_not_given_back_for_them() -> None:
    api = Leases()
    taken = Slots(api, "ns", "a").acquire("t", lambda: True)
    assert taken is not None
    api.leases["flox-node-slot-0"] = held("flox-node-slot-0", "b")
    api.leases["flox-node-slot-0"]["metadata"]["resourceVersion"] = "99"
    Slots(api, "ns", "a").release(taken)
    assert api.leases["flox-node-slot-0"]["spec"]["holderIdentity"] == "b"


@pytest.mark.parametrize(
    "lease",
    [
        {},
        {"metadata": {"annotations": {"flox.dev/slots": "many"}}, "spec": {"renewTime": "soon"}},
        {"metadata": {"annotations": {"flox.dev/slots": "0"}}, "spec": None},
    ],
)
def test_a_lease_that_somebody_wrote_by_hand_does_no_harm(lease: Object) -> None:
    assert parse("n", lease).slots == 1
    assert parse("n", lease).is_free("a", time.time())


def test_nodes_spread_over_the_slots() -> None:
    first = Slot("flox-node-slot-0", proven="t", slots=10)
    counts: dict[str, int] = {}
    for number in range(1000):
        name = name_for(f"node-{number}", "t", first)
        counts[name] = counts.get(name, 0) + 1
    assert len(counts) == 10
    assert max(counts.values()) < 150
