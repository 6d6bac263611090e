"""Foreign programs under full control: a group of their own, a deadline, bounded output, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from flox_node.errors import OutsideError

_TICK_S = 0.1  # how late the end of a program is noticed whose descendants hold its pipes open
_GRACE_S = 1.0  # for what a program does about SIGTERM (Nix removes its locks and its half-written paths)
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Ended:
    """A program that ended. Only the last `limit` bytes of each stream are kept."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


def run_group(
    argv: Sequence[str], *, env: Mapping[str, str], timeout: float, cwd: str = "/", limit: int = 1 << 16
) -> Ended:
    """Run a program with exactly this environment, stdin from /dev/null, and end its whole process group with it.

    `timeout` is in seconds: then the group gets SIGTERM, a second later SIGKILL. Descendants that outlive the
    program are killed too. The same happens when this function is left by an exception (a signal's handler, say).

    Raises:
        OutsideError: the program cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise OutsideError(f"{argv[0]} cannot be started ({error.strerror}).") from error
    streams = (_Tail(limit), _Tail(limit))
    timed_out = True
    with process, selectors.DefaultSelector() as pipes:
        try:
            for pipe, tail in zip((process.stdout, process.stderr), streams, strict=True):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                pipes.register(pipe, selectors.EVENT_READ, tail)
            timed_out = not _read_until_end(process.pid, pipes, timeout)
        finally:
            if timed_out:
                _signal(process.pid, signal.SIGTERM)
                _read_until_end(process.pid, pipes, _GRACE_S)
            # The leader is not reaped yet, so the number of its group cannot be anybody else's.
            _signal(process.pid, signal.SIGKILL)
            _drain(pipes)
    return Ended(process.returncode, streams[0].content(), streams[1].content(), timed_out)


def end_strays(variable: str, value: str) -> None:
    """Kill every process that was started with this variable in its environment, whatever group or parent it has.

    For what outlived a `run_group`: its own process was killed with SIGKILL, or a descendant made itself a session. The
    value should be one that nothing else has. Waits until they are gone, at most a second.
    """
    wanted = f"{variable}={value}".encode()
    until = time.monotonic() + 1.0
    while strays := [pid for pid in _pids() if wanted in _environment(pid)]:
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


class _Tail:
    """The last bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        while self._size - len(self._chunks[0]) >= self._limit:
            self._size -= len(self._chunks.popleft())

    def content(self) -> bytes:
        return b"".join(self._chunks)[-self._limit :]


def _read_until_end(pid: int, pipes: selectors.BaseSelector, timeout: float) -> bool:
    """Read both pipes until the program ended; False when it did not in time."""
    until = time.monotonic() + timeout
    while not _has_ended(pid):
        left = until - time.monotonic()
        if left <= 0:
            return False
        if pipes.get_map():
            _pump(pipes, min(_TICK_S, left))
        else:
            time.sleep(min(_TICK_S / 10, left))
    return True


def _drain(pipes: selectors.BaseSelector) -> None:
    # Both pipes end at once, unless a descendant that left the group holds them: nobody waits for that one. What is in
    # them (at most a chunk each) is read however late a busy machine lets us come to it.
    until = time.monotonic() + _TICK_S
    while pipes.get_map():
        _pump(pipes, _TICK_S)
        if time.monotonic() > until:
            break


def _pump(pipes: selectors.BaseSelector, wait: float) -> None:
    for key, _ in pipes.select(wait):
        _read(pipes, key)


def _read(pipes: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pipe: IO[bytes] = key.fileobj  # type: ignore[assignment]
    with contextlib.suppress(BlockingIOError):
        data = os.read(pipe.fileno(), _CHUNK)
        if data:
            key.data.append(data)
        else:
            pipes.unregister(pipe)


def _has_ended(pid: int) -> bool:
    # WNOWAIT leaves it a zombie, which keeps its process group's number from being given away.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
