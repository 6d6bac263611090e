"""The example in the docstring of the actions works, and is all that a new action takes."""

from __future__ import annotations

import sys
import textwrap
import types
from typing import Any

import pytest

from flox_node import actions
from flox_node.actions import base
from flox_node.plan import StepResult, drift, watched
from flox_node.plan.steps import carry_out, take_back
from flox_node.state.ledger import Ledger
from tests.unit.fake_node import FakeNode


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Any:
    lines = (actions.__doc__ or "").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    "))
    module = types.ModuleType("example_of_an_action")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(base, "_KINDS", dict(base._KINDS))
    exec(textwrap.dedent("\n".join(lines[first:])), vars(module))
    return vars(module)["Announce"]


def _ignore(_: StepResult) -> None:
    pass


def test_the_example_is_done_watched_missed_repaired_and_taken_back(node: FakeNode, announce: Any) -> None:
    (node.root / "etc/motd.d").mkdir()
    file = node.root / "etc/motd.d/flox-node"
    ledger = Ledger.load(node.host.files)
    action = announce("a Flox node")
    carry_out(node.host, ledger, action, _ignore)
    assert file.read_text() == "a Flox node"
    assert drift.find(node.host, ledger) == ()
    assert "/etc/motd.d/flox-node" in watched.find(node.host).paths
    file.unlink()
    (found,) = drift.find(node.host, ledger)
    assert (found.reason, found.suspect) == (
        "/etc/motd.d/flox-node does not say it",
        "somebody removed /etc/motd.d/flox-node",
    )
    carry_out(node.host, ledger, action, _ignore)
    leftover = file.with_name(".flox-node.flox-node.tmp")  # of a killed write
    leftover.touch()
    take_back(node.host, ledger, ledger.records["announce"], _ignore, purge=False, waiting=False)
    assert list(file.parent.iterdir()) == []
    assert not ledger.records
