from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from flox_node.environments import index, locks, roots
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import DeadlineError
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference

KEY = "a" * 32
STORE_PATH = f"/nix/store/{KEY}-environment-run"
SCHEMA = Path(__file__).parents[3] / "installer/flox_node/state/schemas/environment-index.schema.json"
LIVE = Reference("demo", "hello")
PINNED = Reference("demo", "hello", 3)


def question(
    reference: Reference = LIVE, commit: str = "1" * 40, mode: str = "run", hub: str = "https://hub/git"
) -> Question:
    return Question(hub, reference, commit, mode, "x86_64-linux")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(str(tmp_path))
    os.makedirs(paths.on_disk(STORE_PATH))
    roots.add(KEY, STORE_PATH, paths)
    return paths


def answer(asked: Question, paths: Paths) -> Resolution:
    return Resolution("demo/hello", 3, asked.commit, asked.mode, asked.system, STORE_PATH)


def entry(paths: Paths) -> Path:
    return next(Path(paths.index).glob("*.json"))


def test_an_answer_is_found_again_and_follows_the_schema(paths: Paths) -> None:
    asked = question()
    index.record(asked, answer(asked, paths), paths)
    assert index.lookup(asked, paths) == answer(asked, paths)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(entry(paths).read_text()))
    assert stat.S_IMODE(entry(paths).stat().st_mode) == 0o600
    assert len(os.listdir(paths.index)) == 1


def test_a_live_answer_holds_for_its_commit_only(paths: Paths) -> None:
    index.record(question(), answer(question(), paths), paths)
    assert index.lookup(question(commit="2" * 40), paths) is None


def test_a_pinned_answer_outlives_pushes(paths: Paths) -> None:
    index.record(question(PINNED), answer(question(PINNED), paths), paths)
    assert index.lookup(question(PINNED, commit="2" * 40), paths) == answer(question(PINNED), paths)
    assert index.lookup(question(Reference("demo", "hello", 4)), paths) is None
    assert index.lookup(question(), paths) is None, "the live generation at that commit may be another one"


@pytest.mark.parametrize(
    "other",
    [
        question(mode="dev"),
        question(hub="https://other/git"),
        question(Reference("demo", "x")),
        question(commit="2" * 40),
        question(Reference("demo", "hello", 4)),
    ],
)
def test_an_answer_never_serves_another_question(paths: Paths, other: Question) -> None:
    index.record(question(), answer(question(), paths), paths)
    assert index.lookup(other, paths) is None
    # Not even when a file is copied under the other question's name.
    entry(paths).rename(f"{paths.index}/{other.key}.json")
    assert index.lookup(other, paths) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": 2}', "\udcff"])
def test_a_damaged_entry_is_as_good_as_none(paths: Paths, content: str) -> None:
    index.record(question(), answer(question(), paths), paths)
    entry(paths).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert index.lookup(question(), paths) is None


def test_an_entry_whose_root_or_path_is_gone_is_as_good_as_none(paths: Paths) -> None:
    index.record(question(), answer(question(), paths), paths)
    os.unlink(f"{paths.gc_roots}/env-{KEY}")
    assert index.lookup(question(), paths) is None
    roots.add(KEY, STORE_PATH, paths)
    os.rmdir(paths.on_disk(STORE_PATH))
    assert index.lookup(question(), paths) is None


def test_an_entry_that_leads_out_of_the_store_is_ignored(paths: Paths) -> None:
    index.record(question(), answer(question(), paths), paths)
    forged = json.loads(entry(paths).read_text()) | {"store_path": "/etc"}
    entry(paths).write_text(json.dumps(forged))
    assert index.lookup(question(), paths) is None


def test_the_time_of_the_last_use_is_kept(paths: Paths) -> None:
    index.record(question(), answer(question(), paths), paths)
    before = entry(paths).stat().st_mtime
    os.utime(entry(paths), (1, 1))
    index.lookup(question(), paths)
    assert entry(paths).stat().st_mtime >= before


LONG_S = 3600  # more than any test may take


def _hold(folder: str) -> None:
    with locks.hold(folder, "name", Deadline.after(LONG_S)):
        Path(folder, "held").touch()
        time.sleep(LONG_S)


def test_a_lock_is_waited_for_until_the_deadline_and_falls_with_its_holder(tmp_path: Path) -> None:
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path),))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(DeadlineError), locks.hold(str(tmp_path), "name", Deadline.after(0.2)):
        pass
    with locks.hold(str(tmp_path), "another", Deadline.after(LONG_S)):
        pass
    holder.kill()
    with locks.hold(str(tmp_path), "name", Deadline.after(LONG_S)):
        pass
    holder.join()
