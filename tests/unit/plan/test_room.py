"""Room on the store's file system: what is lacking, what a store path weighs, and Nix in small steps."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flox_node.environments import roots
from flox_node.environments.gc import Weight
from flox_node.environments.paths import Paths
from flox_node.errors import OutsideError
from flox_node.plan import room
from tests.unit.fake_node import FakeNode


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path / "node")


@pytest.mark.parametrize(
    ("free_bytes", "free_inodes", "need"),
    [
        (10, 10, None),
        (9, 50, Weight(11 * 4096, 0)),
        (50, 9, Weight(0, 11)),
        (0, 0, Weight(20 * 4096, 20)),
    ],
)
def test_what_is_lacking_is_counted_in_bytes_and_inodes(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, free_bytes: int, free_inodes: int, need: Weight | None
) -> None:
    told = {"f_blocks": 100, "f_bavail": free_bytes, "f_frsize": 4096, "f_files": 100, "f_favail": free_inodes}
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(**told))
    assert room.lacking(node.host) == need


def test_a_file_system_that_counts_no_inodes_never_lacks_any(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"f_blocks": 100, "f_bavail": 5, "f_frsize": 1, "f_files": 0, "f_favail": 0}
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(**told))
    assert room.lacking(node.host) == Weight(15, 0)


def test_a_store_path_weighs_what_its_removal_frees(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    package = Path(paths.on_disk("/nix/store/p"))
    (package / "bin").mkdir(parents=True)
    (package / "bin/program").write_bytes(b"x" * 10_000)
    (package / "bin/link").symlink_to("/etc")
    os.link(package / "bin/program", tmp_path / "elsewhere")
    assert room.weigh("/nix/store/p", paths).inodes == 3, "two folders and a link; the file has another name"
    os.unlink(tmp_path / "elsewhere")
    whole = room.weigh("/nix/store/p", paths)
    assert (whole.inodes, whole.bytes >= 12_288) == (4, True)
    assert room.weigh("/nix/store/none", paths) == Weight(0, 0)


def _nix(node: FakeNode, monkeypatch: pytest.MonkeyPatch, answers: Sequence[tuple[int, str]]) -> list[list[str]]:
    manifest = {"entry_points": {"nix-store": "/nix/store/n/bin/nix-store"}}
    monkeypatch.setattr(room, "parse", lambda _: types.SimpleNamespace(**manifest))
    monkeypatch.setattr(node.host.files, "read", lambda _: b"")
    called: list[list[str]] = []
    left = list(answers)

    def run(words: list[str], **_: Any) -> types.SimpleNamespace:
        called.append(words)
        code, text = left.pop(0)
        return types.SimpleNamespace(returncode=code, stdout=b"", stderr=text.encode())

    monkeypatch.setattr(node.host.processes, "run", run)
    return called


def test_nix_removes_in_steps_until_there_is_nothing_more(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    called = _nix(
        node,
        monkeypatch,
        [
            (0, "finding garbage collector roots...\n12 store paths deleted, 260.50 MiB freed\n"),
            (0, "1 store path deleted, 1.00 GiB freed\n"),
            (0, "2 store paths deleted, 512.00 KiB freed\n"),
        ],
    )
    freed = room.collect_garbage(node.host)
    assert called == [["/nix/store/n/bin/nix-store", "--gc", "--max-freed", str(256 << 20)]] * 3
    assert str(freed) == "15 store paths deleted, 1285.00 MiB freed"
    assert str(room.Freed()) == ""


@pytest.mark.parametrize(("code", "text"), [(1, "error: cannot open the database"), (0, ""), (0, "something else")])
def test_a_nix_that_fails_is_quoted(node: FakeNode, monkeypatch: pytest.MonkeyPatch, code: int, text: str) -> None:
    _nix(node, monkeypatch, [(code, text)])
    with pytest.raises(OutsideError, match=text or "no reason"):
        room.collect_garbage(node.host)


def test_environments_go_until_there_is_room_or_none_may_go(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(str(tmp_path / "node"))
    os.makedirs(paths.index)
    for age, key in enumerate("abc"):
        store_path = f"/nix/store/{key * 32}-environment"
        os.makedirs(paths.on_disk(store_path))
        (Path(paths.on_disk(store_path)) / "file").write_bytes(b"x" * 5000)
        roots.add(key * 32, store_path, paths)
        entry = Path(paths.index, f"{key}.json")
        entry.write_text(json.dumps({"environment": f"demo/{key}", "mode": "run", "store_path": store_path}))
        os.utime(entry, (1000 - age,) * 2)
    monkeypatch.setattr(room, "collect_garbage", lambda _: room.Freed(1, 2.0))
    lacking = [Weight(1, 0), Weight(1, 0), None]
    monkeypatch.setattr(room, "lacking", lambda _: lacking.pop(0))
    assert room.make_room(node.host, paths, fresh_s=1) == (["demo/c", "demo/b"], room.Freed(2, 4.0))
    os.utime(f"{paths.index}/a.json")  # somebody asked for it just now
    lacking = [Weight(1, 0)]
    assert room.make_room(node.host, paths, fresh_s=600) == ([], room.Freed())
    assert os.listdir(paths.index) == ["a.json"]
