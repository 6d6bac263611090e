"""What a node does by itself once a day, and what it never lets go of."""

from __future__ import annotations

import os
import time

import pytest

from flox_node.errors import BusyError
from flox_node.host.lock import GC_LOCK, exclusive
from flox_node.payload import Payload
from flox_node.payload.place import folder_of
from flox_node.plan import StepResult, install, maintenance, room
from flox_node.plan.room import Freed
from flox_node.settings import Settings
from flox_node.state.ledger import Ledger
from tests.unit.fake_node import FakeNode

DAY_S = 86400.0


def ignore(_: StepResult) -> None:
    pass


@pytest.fixture
def node(node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """A node with Flox, and a Nix that has nothing to remove."""
    install(node.host, payload, Settings(), ignore)
    monkeypatch.setattr(room, "collect_garbage", lambda _: Freed())
    monkeypatch.setattr(room, "lacking", lambda _: None)
    return node


def last_used(node: FakeNode, payload: Payload, days_ago: float) -> None:
    at = time.time() - days_ago * DAY_S
    os.utime(node.root / folder_of(payload.manifest.id).lstrip("/"), (at, at))


def is_there(node: FakeNode, payload: Payload) -> bool:
    return (node.root / folder_of(payload.manifest.id).lstrip("/")).is_dir()


def test_the_payload_in_force_stays_however_old_it_is(node: FakeNode, payload: Payload) -> None:
    last_used(node, payload, 400)
    assert maintenance.gc(node.host, ignore).payloads == ()
    assert is_there(node, payload)


def test_a_former_payload_goes_when_nothing_has_used_it_for_long(
    node: FakeNode, payload: Payload, successor: Payload
) -> None:
    install(node.host, successor, Settings(), ignore)
    last_used(node, payload, 29)
    last_used(node, successor, 400)
    assert maintenance.gc(node.host, ignore).payloads == ()
    last_used(node, payload, 31)
    assert maintenance.gc(node.host, ignore).payloads == (payload.manifest.id,)
    assert not is_there(node, payload)
    assert is_there(node, successor)
    ledger = Ledger.load(node.host.files)
    assert not ledger.interrupted
    assert f"place-payload:{payload.manifest.id}" not in ledger.records


def test_a_collection_leaves_an_install_that_was_killed_alone(
    node: FakeNode, payload: Payload, successor: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it placed is what its next run goes on with."""
    append = Ledger._append

    def killed(self: Ledger, entry: dict[str, object]) -> None:
        append(self, entry)
        if entry["event"] == "begin" and str(entry["key"]).startswith("place-payload"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_append", killed)
        with pytest.raises(KeyboardInterrupt):
            install(node.host, successor, Settings(), ignore)
    assert Ledger.load(node.host.files).interrupted
    last_used(node, payload, 400)
    of_a_pod = node.root / "nix/var/nix/gcroots/flox-node/pod-gone"
    of_a_pod.parent.mkdir(parents=True, exist_ok=True)
    of_a_pod.symlink_to("/nix/store/whatever")
    os.utime(of_a_pod, (1, 1), follow_symlinks=False)
    assert maintenance.gc(node.host, ignore) == maintenance.Swept()
    assert of_a_pod.is_symlink()
    assert is_there(node, payload)


def test_a_collection_goes_on_without_the_payloads_while_an_install_runs(
    node: FakeNode, payload: Payload, successor: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(node.host, successor, Settings(), ignore)
    last_used(node, payload, 400)

    def busy(*_: object) -> tuple[str, ...]:
        raise BusyError("Another run of flox-node has this node.")

    monkeypatch.setattr(maintenance, "_forget_payloads", busy)
    assert maintenance.gc(node.host, ignore).payloads == ()
    assert is_there(node, payload)


def test_two_collections_at_once_are_refused(node: FakeNode) -> None:
    with exclusive(node.host.files, GC_LOCK), pytest.raises(BusyError):
        maintenance.gc(node.host, ignore)
