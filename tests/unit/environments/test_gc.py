"""Garbage collection of environments: what goes, in which order, and what never does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flox_node.environments import gc, index, locks, roots, work
from flox_node.environments.deadline import Deadline
from flox_node.environments.gc import Weight
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from tests.conftest import FULL

NOW = 2_000_000_000.0
DAY = 86_400.0


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path))


def store_path(key: str) -> str:
    return f"/nix/store/{key * 32}-environment"


def add(key: str, paths: Paths, *, name: str = "hello", commit: str = "1", days_ago: float = 0.0) -> None:
    """An environment with its root and its entry, last used so many days ago."""
    question = Question("https://hub/git", Reference("demo", name), commit * 40, "run", "x86_64-linux")
    roots.add(key * 32, store_path(key), paths)
    before = set(os.listdir(paths.index)) if os.path.isdir(paths.index) else set()
    index.record(question, Resolution(f"demo/{name}", 1, commit * 40, "run", "x86_64-linux", store_path(key)), paths)
    for file in set(os.listdir(paths.index)) - before:
        os.utime(f"{paths.index}/{file}", (NOW - days_ago * DAY,) * 2)


def pod(key: str, paths: Paths) -> None:
    os.makedirs(paths.gc_roots, exist_ok=True)
    os.symlink(store_path(key), f"{paths.gc_roots}/pod-{key}")


def let_go(paths: Paths, *, days: float) -> list[str]:
    since = NOW - days * DAY
    return gc.let_go(gc.unused(paths, since=since), paths, unused_since=since)


def left(paths: Paths) -> list[str]:
    return sorted(os.listdir(paths.gc_roots))


def test_what_was_not_used_for_long_goes_with_its_root(paths: Paths) -> None:
    add("a", paths, name="old", days_ago=31)
    add("b", paths, name="new", days_ago=29)
    assert let_go(paths, days=30) == ["demo/old"]
    assert left(paths) == [f"env-{'b' * 32}"]
    assert [entry.environment for entry in gc.entries(paths)] == ["demo/new"]


def test_what_a_pod_has_stays_however_old_it_is(paths: Paths) -> None:
    add("a", paths, days_ago=400)
    pod("a", paths)
    assert gc.unused(paths, since=NOW) == []
    assert let_go(paths, days=0) == []
    assert gc.let_go(["a" * 32], paths, unused_since=NOW + 1) == [], "the pod came after the choice"
    assert left(paths) == [f"env-{'a' * 32}", "pod-a"]


def test_equal_environments_stay_while_one_of_them_is_used(paths: Paths) -> None:
    add("a", paths, name="old", days_ago=31)
    add("a", paths, name="same", days_ago=1)
    assert let_go(paths, days=30) == []
    assert sorted(let_go(paths, days=0.5)) == ["demo/old", "demo/same"]


def test_what_is_asked_for_while_it_is_chosen_stays(paths: Paths) -> None:
    add("a", paths, days_ago=31)
    keys = gc.unused(paths, since=NOW - 30 * DAY)
    os.utime(gc.entries(paths)[0].file, (NOW, NOW))
    assert gc.let_go(keys, paths, unused_since=NOW - 30 * DAY) == []


def test_an_entry_that_cannot_be_read_keeps_nothing_from_going(paths: Paths) -> None:
    add("a", paths, days_ago=31)
    Path(paths.index, "damaged.json").write_text("{")
    assert let_go(paths, days=30) == ["demo/hello"]


@pytest.fixture
def history(paths: Paths) -> Paths:
    """Two environments: `hello` was used yesterday and twice before, `other` a week ago; a pod has the oldest hello."""
    add("a", paths, commit="1", days_ago=20)
    add("b", paths, commit="2", days_ago=2)
    add("c", paths, commit="3", days_ago=1)
    add("d", paths, name="other", days_ago=7)
    pod("a", paths)
    return paths


CLOSURES = {"a": "aS", "b": "bSX", "c": "cSX", "d": "dSY"}


def chosen(need: Weight, paths: Paths, *, since: float = NOW) -> str:
    def closure(of: str) -> Iterator[str]:
        yield from CLOSURES[of[11]]

    keys = gc.enough(
        paths, need, since=since, closure=closure, weigh=lambda path: Weight(100 if path in "XYS" else 1, 1)
    )
    return "".join(key[0] for key in keys)


@pytest.mark.parametrize(
    ("need", "keys"),
    [
        (Weight(0, 0), ""),
        (Weight(1, 0), "b"),  # a generation of before goes first, though it was used later
        (Weight(2, 0), "bd"),
        (Weight(102, 2), "bd"),  # Y goes with the last that has it, S stays with the pod's
        (Weight(103, 0), "bdc"),
        (Weight(0, 4), "bdc"),
        (Weight(1e9, 1e9), "bdc"),
    ],
)
def test_room_is_made_in_the_order_of_last_use_and_generations_of_before_first(
    history: Paths, need: Weight, keys: str
) -> None:
    assert chosen(need, history) == keys


def test_what_was_asked_for_just_now_is_not_taken_for_room(history: Paths) -> None:
    assert chosen(Weight(1e9, 0), history, since=NOW - 1.5 * DAY) == "bd"


def test_roots_that_nobody_knows_of_go_and_those_being_made_stay(paths: Paths) -> None:
    add("a", paths)
    for key in ("b", "c"):  # killed before their entries were there
        roots.add(key * 32, store_path(key), paths)
    os.symlink(store_path("a"), f"{paths.gc_roots}/.env-{'a' * 32}.flox-node.tmp")
    with (
        locks.hold(paths.locks, roots.name_of("c" * 32), Deadline.after(3600)),
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(gc, "_LOCK_WAIT_S", 0.01)
        assert gc.forget_strays(paths) == 2
    assert left(paths) == [f"env-{'a' * 32}", f"env-{'c' * 32}"]


def test_links_into_private_folders_that_are_gone_go_and_others_stay(paths: Paths) -> None:
    os.makedirs(paths.auto_roots)
    os.makedirs(paths.on_disk("/run/flox-node/realise/live"))
    for name, target in {
        "gone": "/run/flox-node/realise/wiped/checkout/.flox/run/x",
        "live": "/run/flox-node/realise/live",
        "somebodys": "/home/somebody/result",
    }.items():
        os.symlink(target, f"{paths.auto_roots}/{name}")
    assert gc.forget_strays(paths) == 1
    assert sorted(os.listdir(paths.auto_roots)) == ["live", "somebodys"]


def test_a_pods_root_goes_when_containerd_no_longer_knows_its_sandbox(paths: Paths) -> None:
    for key in ("a", "b", "c"):
        pod(key, paths)
    for key, days_ago in (("a", 1.0), ("b", 1.0), ("c", 0.0)):
        os.utime(f"{paths.gc_roots}/pod-{key}", (NOW - days_ago * DAY,) * 2, follow_symlinks=False)
    assert gc.forget_pods(paths, sandboxes={"a"}, older_than=NOW - 600) == ["b"]
    assert left(paths) == ["pod-a", "pod-c"]


def test_what_a_killed_fetch_held_goes_and_what_a_running_one_holds_stays(paths: Paths) -> None:
    for name in ("killed", "running"):
        os.makedirs(f"{paths.gc_roots}/fetch-{name}")
        os.symlink(store_path("a"), f"{paths.gc_roots}/fetch-{name}/a")
    with work.locked("running", paths, Deadline.after(3600)):
        assert gc.forget_strays(paths) == 1
    assert left(paths) == ["fetch-running"]


def test_locks_that_nobody_holds_go_and_whoever_waits_for_one_still_is_alone(paths: Paths) -> None:
    deadline = Deadline.after(3600)
    with locks.hold(paths.locks, "realise-held", deadline), locks.hold(paths.locks, "env-gone", deadline):
        pass
    Path(paths.locks, "install.lock").touch()
    with locks.hold(paths.locks, "realise-held", deadline):
        gc.forget_strays(paths)
        assert sorted(os.listdir(paths.locks)) == ["install.lock", "realise-held.lock"]
        waiting = threading.Thread(target=lambda: waited.append(_held_once("realise-held", paths)))
        waited: list[bool] = []
        waiting.start()
        os.unlink(f"{paths.locks}/realise-held.lock")  # as a collection does that holds it
    waiting.join()
    assert waited == [True]


def _held_once(name: str, paths: Paths) -> bool:
    """Whether a holder's lock is the one that others find under its name."""
    with locks.hold(paths.locks, name, Deadline.after(3600)):
        return locks.is_held(paths.locks, name)


def test_environments_that_come_and_go_leave_nothing(paths: Paths) -> None:
    alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
    grown = []
    for cycle in range(10_000 if FULL else 64):
        key = alphabet[cycle % 32]
        with locks.hold(paths.locks, roots.name_of(key * 32), Deadline.after(3600)):
            add(key, paths, name=f"e{cycle}", days_ago=1)
        pod(key, paths)
        assert let_go(paths, days=0) == []
        gc.forget_pods(paths, sandboxes=set(), older_than=time.time() + 1)
        assert let_go(paths, days=0) == [f"demo/e{cycle}"]
        gc.forget_strays(paths)
        if cycle % 32 == 31:
            grown.append(sum(len(folders) + len(files) for _, folders, files in os.walk(paths.root)))
    assert len(set(grown)) == 1
    assert left(paths) == os.listdir(paths.index) == os.listdir(paths.locks) == []
