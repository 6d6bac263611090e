"""Whole or not at all, and one at a time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from flox_node import atomic
from flox_node.atomic import HeldError


def test_a_file_is_replaced_with_its_mode_also_where_a_killed_run_left_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    (tmp_path / "elsewhere").write_bytes(b"mine")
    os.symlink(tmp_path / "elsewhere", atomic.temporary_of(path))
    for data in (b"old", b"new"):
        atomic.write(path, data, mode=0o600)
        assert Path(path).read_bytes() == data
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "file"]


def test_what_fails_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    atomic.write(path, b"old")

    def interrupted() -> None:
        with atomic.replacing(path) as temporary:
            Path(temporary).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Path(path).read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_takes_the_place_of_whatever_is_there_but_a_folder(tmp_path: Path) -> None:
    path = str(tmp_path / "link")
    atomic.write(path, b"a file")
    for target in ("/nix/store/a", "/nix/store/b"):
        atomic.symlink(path, target)
        assert os.readlink(path) == target


def test_a_lock_has_one_holder_or_many_that_share_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with atomic.locked(lock), pytest.raises(HeldError), atomic.locked(lock):
        raise AssertionError
    with (
        atomic.locked(lock, shared=True),
        atomic.locked(lock, shared=True),
        pytest.raises(HeldError),
        atomic.locked(lock),
    ):
        raise AssertionError
    with atomic.locked(lock):
        pass


def test_a_lock_is_waited_for_as_long_as_there_is_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    looks: list[float] = []
    with atomic.locked(lock):

        def left() -> float:
            looks.append(0.0)
            return 0.001 if len(looks) < 5 else 0.0

        with pytest.raises(HeldError), atomic.locked(lock, left=left):
            raise AssertionError
    assert len(looks) == 5


def test_the_errors_of_the_body_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError) as caught, atomic.locked(tmp_path / "lock"):
        raise BlockingIOError
    assert not isinstance(caught.value, HeldError)
