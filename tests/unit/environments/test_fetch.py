"""What fetches leave, and what they tell."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from flox_node.environments import fetch, locks
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import FetchingError, NotBuiltError
from flox_node.environments.index import Question
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.errors import CorruptError, FloxNodeError, OutsideError
from flox_node.state.policy import Policy


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(str(tmp_path))
    os.makedirs(paths.fetches)
    for key in ("old", "new", "runs"):
        Path(paths.fetches, f"{key}.json").write_text(json.dumps({"id": key}))
        for name in ("start", "fetch"):
            with locks.hold(paths.locks, f"{name}-{key}", Deadline.after(3600)):
                pass
    for key in ("old", "runs"):
        os.utime(f"{paths.fetches}/{key}.json", (1, 1))
    return paths


def test_a_sweep_leaves_the_states_of_today_and_of_what_runs(paths: Paths) -> None:
    with locks.hold(paths.locks, "fetch-runs", Deadline.after(3600)):
        fetch.sweep(paths)
    assert sorted(os.listdir(paths.fetches)) == ["new.json", "runs.json"]
    assert not [name for name in os.listdir(paths.locks) if "old" in name]
    assert len(os.listdir(paths.locks)) == 4


@pytest.mark.parametrize("kind", [NotBuiltError, CorruptError, OutsideError, FloxNodeError])
def test_a_refusal_reaches_who_waits_as_it_was_said(kind: type[FloxNodeError]) -> None:
    said = {"code": kind.code, "cause": "it is so.", "remedy": "Do that."}
    with pytest.raises(FloxNodeError, match="it is so") as refused:
        fetch._outcome(fetch.State("one", refusal=said))
    assert type(refused.value) is kind
    assert refused.value.remedy == "Do that."


def test_a_damaged_state_is_none(paths: Paths) -> None:
    Path(paths.fetches, "new.json").write_text("{")
    assert fetch.read("new", paths) is None
    assert fetch.read("nobody", paths) is None
    state = fetch.read("old", paths)
    assert state is not None
    assert not state.ended


def test_who_waits_for_a_fetch_hears_how_far_it_is_now_and_then(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_SILENCE_S", 0.0)
    question = Question("https://hub", Reference("ci", "big", None), "0" * 40, "run", "x86_64-linux")
    state = {"id": "one", "step": "fetch", "began_at": time.time() - 8, "done": 1 << 20, "expected": 4 << 20}
    Path(paths.fetches, f"{question.key}.json").write_text(json.dumps(state))
    heard: list[str] = []
    with (
        locks.hold(paths.locks, f"fetch-{question.key}", Deadline.after(3600)),
        pytest.raises(FetchingError, match=r"1\.0 of 4\.0 MiB"),
    ):
        fetch.join(question, Access(Policy(), paths, None), Deadline.after(0.5), heard.append)
    assert "1.0 of 4.0 MiB are here (25%)" in heard[0]
    assert "s are left" in heard[0]
