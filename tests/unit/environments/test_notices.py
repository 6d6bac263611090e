"""What is to be told to pods: written by the handler, read by whoever makes events of it."""

import itertools
import json
import os
import time
from pathlib import Path

import pytest

from flox_node.environments import notices
from flox_node.environments.paths import Paths

UID = "b1946ac9-2b92-4d2e-a0c5-0a1d1b9f0001"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    moments = itertools.count(time.time_ns(), 1_000_000)
    monkeypatch.setattr("flox_node.environments.notices.time.time_ns", lambda: next(moments))
    return Paths(str(tmp_path))


def fetching(paths: Paths, message: str = "it is fetched", uid: str = UID, pod: str = "web") -> None:
    notices.tell("ci", pod, uid, notices.FETCHING, message, paths)


def age(paths: Paths, seconds: float, uid: str = UID) -> None:
    then = time.time() - seconds
    os.utime(f"{paths.notices}/{uid}.json", (then, then))


def test_a_pod_is_told_how_far_its_fetch_is_and_not_again_at_once(paths: Paths) -> None:
    fetching(paths, "10%\n of it")
    fetching(paths, "11%")
    (notice,) = notices.recent(paths)
    assert (notice.namespace, notice.pod, notice.uid, notice.kind) == ("ci", "web", UID, notices.FETCHING)
    assert notice.message == "10% of it"
    age(paths, notices.EVERY_S + 1)
    fetching(paths, "60%")
    (later,) = notices.recent(paths)
    assert later.message == "60%"
    assert later.id != notice.id


def test_what_is_no_progress_is_told_at_once(paths: Paths) -> None:
    fetching(paths)
    notices.tell("ci", "web", UID, notices.HUB_UNREACHABLE, "the hub is away", paths)
    assert [notice.kind for notice in notices.recent(paths)] == [notices.HUB_UNREACHABLE]


@pytest.mark.parametrize(("uid", "pod"), [("", "web"), ("../x", "web"), (UID, "A pod"), (UID, "../../secrets")])
def test_a_pod_that_no_kubelet_made_is_told_nothing(paths: Paths, uid: str, pod: str) -> None:
    fetching(paths, uid=uid, pod=pod)
    assert notices.recent(paths) == []
    assert not list(Path(paths.root).rglob("*.json"))


def test_what_is_none_is_left_out_and_what_is_old_is_swept(paths: Paths) -> None:
    folder = Path(paths.notices)
    fetching(paths)
    good = json.loads((folder / f"{UID}.json").read_text())
    for number, bad in enumerate([{**good, "namespace": "../x"}, {**good, "kind": "Killing"}, [], {}, "x"]):
        (folder / f"bad-{number}.json").write_text(json.dumps(bad))
    (folder / "large.json").write_text(json.dumps({**good, "message": "x" * 100_000}))
    (folder / "link.json").symlink_to(folder / f"{UID}.json")
    os.mkfifo(folder / "pipe.json")
    assert [notice.uid for notice in notices.recent(paths)] == [UID]
    age(paths, 1000)
    assert notices.recent(paths) == []
    age(paths, 4000)
    fetching(paths, uid="other")
    assert not (folder / f"{UID}.json").exists()


def test_only_so_many_are_passed_on_the_newest(paths: Paths) -> None:
    for number in range(40):
        fetching(paths, str(number), uid=f"pod-{number}")
    assert [notice.uid for notice in notices.recent(paths)] == [f"pod-{number}" for number in range(8, 40)]
