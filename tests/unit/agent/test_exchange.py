"""What one container tells the other is bad input until it is parsed."""

import os
from pathlib import Path

import pytest

from flox_node.agent import exchange
from flox_node.agent.exchange import Event, Granted, NodeState
from flox_node.kube.names import Happening, Reason

STATE = NodeState(
    Reason.INSTALLED,
    "live",
    live=True,
    identity="boot 12@1",
    versions={"shim": "1"},
    event=Event(7, Happening.INSTALLED, "live"),
)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    exchange.write(tmp_path, "state.json", STATE)
    assert exchange.read(tmp_path, "state.json", NodeState) == STATE


def test_what_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    exchange.write(tmp_path, "state.json", STATE)
    before = (tmp_path / "state.json").stat()
    exchange.write(tmp_path, "state.json", STATE)
    assert (tmp_path / "state.json").stat().st_ino == before.st_ino


def test_a_symlink_is_neither_followed_nor_written_through(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    exchange.write(tmp_path, "secret", Granted("stolen"))
    folder = tmp_path / "exchange"
    folder.mkdir()
    (folder / "slot.json").symlink_to(secret)
    (folder / ".slot.json.new").symlink_to(secret)
    assert exchange.read(folder, "slot.json", Granted) is None
    before = secret.read_bytes()
    exchange.write(folder, "slot.json", Granted("mine"))
    assert secret.read_bytes() == before
    assert exchange.read(folder, "slot.json", Granted) == Granted("mine")


def test_a_pipe_does_not_block_its_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slot.json")
    assert exchange.read(tmp_path, "slot.json", Granted) is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{}", b'{"slot": 1', b"\xff", b'{"slot": "' + b"x" * (1 << 17) + b'"}']
)
def test_what_cannot_be_understood_says_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "slot.json").write_bytes(data)
    assert exchange.read(tmp_path, "slot.json", Granted) is None


@pytest.mark.parametrize("change", [{"reason": "Because"}, {"versions": 3}, {"event": {"number": "x"}}])
def test_a_state_with_a_word_that_nobody_knows_says_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    import dataclasses
    import json

    (tmp_path / "state.json").write_text(json.dumps({**dataclasses.asdict(STATE), **change}))
    assert exchange.read(tmp_path, "state.json", NodeState) is None
