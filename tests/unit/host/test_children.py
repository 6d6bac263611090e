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
LONG_S = 3600
"""Longer than any test may take: what waits for it hangs, and pytest's own limit says so, on the busiest machine."""


def sh(script: str, timeout: float = LONG_S, limit: int = 1 << 16) -> Completed:
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

    assert any(took() < 0.5 for _ in range(100)), "one attempt that the machine has time for is enough"


def test_only_the_end_of_endless_output_is_kept() -> None:
    ended = sh("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", limit=1000)
    assert len(ended.stdout) == 1000
    assert ended.stdout.endswith(b"line 19999\n")


def test_a_program_that_never_stops_writing_meets_its_deadline() -> None:
    assert sh("yes", timeout=0.3).timed_out


def after(said: Path, script: str) -> Completed:
    """Run a script to a deadline that comes after it said something in that file, however slow the machine is."""
    for timeout in (0.5, 5, 50, 500):
        ended = sh(script, timeout=timeout)
        if said.exists() and said.read_text():
            break
    return ended


def test_the_whole_group_ends_at_the_deadline(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert after(pid, f"sleep {LONG_S} & echo $! > {pid}; wait").timed_out
    assert wait_ended(int(pid.read_text()), LONG_S)


def test_a_program_that_ignores_sigterm_is_killed_all_the_same(tmp_path: Path) -> None:
    ended = after(tmp_path / "deaf", f"trap '' TERM; echo yes > {tmp_path}/deaf; while :; do sleep 0.1; done")
    assert ended.timed_out
    assert ended.returncode == -signal.SIGKILL


def test_a_descendant_that_stays_behind_is_killed_with_the_programs_end(tmp_path: Path) -> None:
    ended = sh(f"sleep {LONG_S} & echo $! > {tmp_path}/pid; echo done")
    assert ended.stdout == b"done\n"
    assert not ended.timed_out
    assert wait_ended(int((tmp_path / "pid").read_text()), LONG_S)


def test_a_descendant_that_left_the_group_and_holds_the_pipes_is_not_waited_for(tmp_path: Path) -> None:
    assert not sh(f"setsid sleep {LONG_S} & echo $! > {tmp_path}/pid").timed_out
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_an_exception_from_outside_ends_the_group_too(tmp_path: Path) -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            sh(f"echo $$ > {tmp_path}/pid; kill -USR1 $PPID; sleep {LONG_S}")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert wait_ended(int((tmp_path / "pid").read_text()), LONG_S)


def test_a_missing_program_is_an_error_with_its_name() -> None:
    with pytest.raises(OutsideError, match="/nonexistent"):
        run_group(["/nonexistent"], env=ENV, timeout=1)


def _leave_behind(pid_file: Path) -> str:
    """A script that ends once its child is in a session of its own, out of reach of a kill of the group."""
    return f"setsid sh -c 'echo $$ > {pid_file}; exec sleep {LONG_S}' & until [ -s {pid_file} ]; do sleep 0.01; done"


def test_strays_are_found_by_their_environment_and_nobody_else_is_touched(tmp_path: Path) -> None:
    mine = {**ENV, "TMPDIR": f"{tmp_path}/tmp"}
    run_group(["sh", "-c", _leave_behind(tmp_path / "mine")], env=mine, timeout=LONG_S)
    others = {**ENV, "TMPDIR": f"{tmp_path}/tmp2"}
    run_group(["sh", "-c", _leave_behind(tmp_path / "others")], env=others, timeout=LONG_S)
    stray, other = (int((tmp_path / name).read_text()) for name in ("mine", "others"))
    assert not has_ended(stray)
    end_strays("TMPDIR", f"{tmp_path}/tmp")
    assert wait_ended(stray, LONG_S)
    assert not has_ended(other)
    os.kill(other, signal.SIGKILL)
