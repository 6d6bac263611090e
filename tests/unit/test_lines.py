"""Lines of a log that several write: whole at a full disk, through a rotation, and after a writer that was cut off."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flox_node import lines


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_line_is_there_as_a_whole_or_not_at_all_on_a_full_disk(small_disk: Path) -> None:
    log = small_disk / "log"

    def fill() -> None:
        for _ in range(100):
            lines.append(str(log), b"x" * 999, limit=1 << 20)

    with pytest.raises(OSError, match=r"space|bytes of a line"):
        fill()
    size = log.stat().st_size
    assert size > 0
    assert size % 1000 == 0
    os.truncate(log, 2000)
    lines.append(str(log), b"again", limit=1 << 20)
    assert log.read_bytes().endswith(b"\nagain\n")


def test_half_a_line_stays_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b'{"half":')
    lines.append(str(log), b"one", limit=100)
    lines.append(str(log), b"two", limit=100)
    assert log.read_bytes() == b'{"half":\none\ntwo\n'


def test_a_writer_that_hangs_with_the_lock_stops_nobody(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    with log.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lines.append(str(log), b"one", limit=100)
    assert log.read_bytes() == b"one\n"


def test_a_fifo_and_a_link_are_not_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("target")
    for name in ("fifo", "link"):
        with pytest.raises(OSError, match=r"regular file|symbolic links"):
            lines.append(str(tmp_path / name), b"x", limit=100)
    assert not (tmp_path / "target").exists()


def _write(log: str, writer: int) -> None:
    for number in range(50):
        lines.append(log, f"{writer}-{number}".encode(), limit=2000)


def test_no_line_is_lost_through_one_rotation_by_many(tmp_path: Path) -> None:
    log = tmp_path / "log"
    writers = [multiprocessing.get_context("fork").Process(target=_write, args=(str(log), each)) for each in range(10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * len(writers)
    older = (tmp_path / "log.1").read_text().splitlines()
    assert 2000 < (tmp_path / "log.1").stat().st_size < 2100
    assert sorted(older + log.read_text().splitlines()) == sorted(f"{w}-{n}" for w in range(10) for n in range(50))
