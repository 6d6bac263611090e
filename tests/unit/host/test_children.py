from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from flox_node.errors import OutsideError
from flox_node.host.children import Completed, end_strays, run_group
from tests.bed.processes import has_ended, wait_ended

ENV = {"PATH": "/usr/bin:/bin"}
PATIENCE_S = 20
"""What a busy machine may take; whatever a program here would wait for takes three times as long."""


def sh(script: str, timeout: float = 60, limit: int = 1 << 16) -> Completed:
    return run_group(["sh", "-c", script], env=ENV, timeout=timeout, limit=limit)


def test_output_status_and_environment_are_the_programs() -> None:
    ended = sh("echo out; echo err >&2; env >&2; read line || echo no input; exit 7")
    assert (ended.returncode, ended.stdout, ended.timed_out) == (7, b"out\nno input\n", False)
    assert ended.stderr.startswith(b"err\n")
    assert b"HOME=" not in ended.stderr


def test_a_short_program_is_not_waited_for_longer_than_it_runs() -> None:
    def took() -> float:
        started = time.monotonic()
        sh("true")
        return time.monotonic() - started

    assert any(took() < 0.5 for _ in range(5)), "a busy machine may need more than one attempt"


def test_only_the_end_of_endless_output_is_kept() -> None:
    ended = sh("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", limit=1000)
    assert len(ended.stdout) == 1000
    assert ended.stdout.endswith(b"line 19999\n")


def test_a_program_that_never_stops_writing_meets_its_deadline() -> None:
    started = time.monotonic()
    assert sh("yes", timeout=0.3).timed_out
    assert time.monotonic() - started < PATIENCE_S


def test_the_whole_group_ends_at_the_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = sh(f"sleep 60 & echo $! > {tmp_path}/pid; wait", timeout=1)
    assert ended.timed_out
    assert time.monotonic() - started < PATIENCE_S
    assert wait_ended(int((tmp_path / "pid").read_text()), PATIENCE_S)


def test_a_program_that_ignores_sigterm_is_killed_all_the_same() -> None:
    started = time.monotonic()
    ended = sh("trap '' TERM; while :; do sleep 0.1; done", timeout=1)
    assert ended.timed_out
    assert ended.returncode == -signal.SIGKILL
    assert time.monotonic() - started < PATIENCE_S


def test_a_descendant_that_stays_behind_is_killed_with_the_programs_end(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = sh(f"sleep 60 & echo $! > {tmp_path}/pid; echo done")
    assert ended.stdout == b"done\n"
    assert not ended.timed_out
    assert time.monotonic() - started < PATIENCE_S
    assert wait_ended(int((tmp_path / "pid").read_text()), PATIENCE_S)


def test_a_descendant_that_left_the_group_and_holds_the_pipes_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    assert not sh(f"setsid sleep 60 & echo $! > {tmp_path}/pid").timed_out
    assert time.monotonic() - started < PATIENCE_S
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_an_exception_from_outside_ends_the_group_too(tmp_path: Path) -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(KeyboardInterrupt):
            sh(f"echo $$ > {tmp_path}/pid; sleep 60")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert wait_ended(int((tmp_path / "pid").read_text()), PATIENCE_S)


def test_a_missing_program_is_an_error_with_its_name() -> None:
    with pytest.raises(OutsideError, match="/nonexistent"):
        run_group(["/nonexistent"], env=ENV, timeout=1)


def _leave_behind(pid_file: Path) -> str:
    """A script that ends once its child is in a session of its own, out of reach of a kill of the group."""
    return f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 60' & until [ -s {pid_file} ]; do sleep 0.01; done"


def test_strays_are_found_by_their_environment_and_nobody_else_is_touched(tmp_path: Path) -> None:
    mine = {**ENV, "TMPDIR": f"{tmp_path}/tmp"}
    run_group(["sh", "-c", _leave_behind(tmp_path / "mine")], env=mine, timeout=60)
    others = {**ENV, "TMPDIR": f"{tmp_path}/tmp2"}
    run_group(["sh", "-c", _leave_behind(tmp_path / "others")], env=others, timeout=60)
    stray, other = (int((tmp_path / name).read_text()) for name in ("mine", "others"))
    assert not has_ended(stray)
    end_strays("TMPDIR", f"{tmp_path}/tmp")
    assert wait_ended(stray, PATIENCE_S)
    assert not has_ended(other)
    os.kill(other, signal.SIGKILL)
