"""The node's log is read through its rotation, and as far back as it is asked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flox_node.host import event_log
from flox_node.host.files import HostFiles

NOW = 2_000_000_000.0


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    (tmp_path / "var/log/flox-node").mkdir(parents=True)
    return HostFiles(tmp_path)


def line(pod: str, *, ago: float, level: str = "error") -> str:
    at = datetime.fromtimestamp(NOW - ago, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"time": at, "level": level, "pod": pod}, separators=(",", ":")) + "\n"


def write(files: HostFiles, *, log: str = "", older: str | None = None) -> None:
    files.real(event_log.PATH).write_text(log)
    if older is not None:
        files.real(f"{event_log.PATH}.1").write_text(older)


def pods(files: HostFiles, *, seconds: float) -> list[str]:
    found = event_log.errors_since(files, NOW - seconds)
    assert found is not None
    return [event["pod"] for event in found]


def test_an_error_is_found_however_much_was_written_since_then(files: HostFiles) -> None:
    write(files, log=line("first", ago=600) + line("good", ago=300, level="info") * 20_000)
    assert pods(files, seconds=86_400) == ["first"]


def test_an_error_is_found_through_a_rotation(files: HostFiles) -> None:
    write(files, older=line("before", ago=60), log=line("after", ago=30))
    assert pods(files, seconds=86_400) == ["before", "after"]
    assert pods(files, seconds=40) == ["after"]


def test_lines_that_say_nothing_are_left_out(files: HostFiles) -> None:
    odd = '{"torn": "error"\n[]\n"error"\n{"level":"error"}\n{"level":"error","time":3}\n'
    odd += '{"level":"error","time":"2033-05-18T03:33:20"}\n{"level":"info","time":"x","message":"\\"error\\""}\n'
    write(files, log=odd + line("real", ago=1) + '{"level":"error","ti')
    assert pods(files, seconds=10) == ["real"]


def test_no_log_is_told_from_an_empty_one(files: HostFiles) -> None:
    assert event_log.errors_since(files, NOW) is None
    assert event_log.tail(files, 100) is None
    write(files)
    assert event_log.errors_since(files, NOW) == []
    assert event_log.tail(files, 100) == b""


def test_the_tail_goes_on_in_the_older_file(files: HostFiles) -> None:
    write(files, older="0123456789", log="abc")
    assert event_log.tail(files, 5) == b"89abc"
    assert event_log.tail(files, 2) == b"bc"
