"""The one way to run a program: a group of its own, a deadline, bounded output, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from flox_node.errors import OutsideError

_TICK_S = 0.1  # how late the end of a program is noticed whose descendants hold its pipes open
_GRACE_S = 1.0  # for what a program does about SIGTERM (Nix removes its locks and its half-written paths)
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Completed:
    """A program that ended. Only the last `limit` bytes of each stream are kept. `timed_out`: it was ended by us."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False


Finish = Callable[[bytes], Completed]


def run_group(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    cwd: str = "/",
    limit: int = 1 << 16,
    watch: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run a program with exactly this environment and no input, and end its whole process group with it.

    `timeout` is in seconds: then the group gets SIGTERM, a second later SIGKILL. Descendants that outlive the
    program are killed too. The same happens when this function is left by an exception (a signal's handler, say).
    `watch` gets each line of stderr as it comes, without its end.

    Raises:
        OutsideError: the program cannot be started.
    """
    with started_group(argv, env=env, timeout=timeout, cwd=cwd, limit=limit, watch=watch) as finish:
        return finish(b"")


@contextlib.contextmanager
def started_group(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    cwd: str = "/",
    limit: int = 1 << 16,
    root: Path = Path("/"),
    watch: Callable[[bytes], None] | None = None,
) -> Iterator[Finish]:
    """Start a program as `run_group` does, chrooted into `root`, and give it its input later; `timeout` begins then.

    Its group is killed when the body is left, and has got no input if the body never gave it any.

    Raises:
        OutsideError: the program cannot be started.
    """

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")

    held = _HeldSignals()
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=None if root == Path("/") else enter,
        )
    except BaseException as error:
        held.release()
        if isinstance(error, OSError):
            raise OutsideError(f"{argv[0]} cannot be started ({error.strerror}).") from error
        raise
    stdin, output, errors = process.stdin, _Tail(limit), _Tail(limit, watch)
    assert stdin is not None

    def finish(input: bytes) -> Completed:
        _register(pipes, stdin, selectors.EVENT_WRITE, _Input(input))
        timed_out = not _read_until_end(process.pid, pipes, timeout)
        if timed_out:
            _signal(process.pid, signal.SIGTERM)
            _read_until_end(process.pid, pipes, _GRACE_S)
        end()
        return Completed(process.wait(), output.content(), errors.content(), timed_out)

    def end() -> None:
        # The leader is not reaped yet, so the number of its group cannot be anybody else's.
        if process.returncode is None:
            _signal(process.pid, signal.SIGKILL)
            _drain(pipes)

    with process, selectors.DefaultSelector() as pipes:
        for pipe, tail in ((process.stdout, output), (process.stderr, errors)):
            assert pipe is not None
            _register(pipes, pipe, selectors.EVENT_READ, tail)
        try:
            held.release()
            yield finish
        finally:
            end()


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


class _HeldSignals:
    """Python's signal handlers wait until `release`, which may raise what they raise.

    Until a program's start has returned nobody knows its pid, so nobody could end what an exception leaves behind.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        if threading.current_thread() is threading.main_thread():  # handlers run nowhere else
            for number in signal.valid_signals():
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)

    def _hold(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)

    def release(self) -> None:
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in self._came:
            handlers[number](number, None)


class _Tail:
    """The last bytes of a stream; `watch` sees its lines."""

    def __init__(self, limit: int, watch: Callable[[bytes], None] | None = None) -> None:
        self._limit = limit
        self._watch = watch
        self._line = b""
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def append(self, data: bytes) -> None:
        if self._watch:
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._watch(line)
            self._line = self._line[-self._limit :]
        self._chunks.append(data)
        self._size += len(data)
        while self._size - len(self._chunks[0]) >= self._limit:
            self._size -= len(self._chunks.popleft())

    def content(self) -> bytes:
        return b"".join(self._chunks)[-self._limit :]


class _Input:
    """What a program is still to read."""

    def __init__(self, data: bytes) -> None:
        self.left = memoryview(data)


def _register(pipes: selectors.BaseSelector, pipe: IO[bytes], event: int, data: _Tail | _Input) -> None:
    os.set_blocking(pipe.fileno(), False)
    pipes.register(pipe, event, data)


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
        pipe: IO[bytes] = key.fileobj  # type: ignore[assignment]
        if not (_write(pipe, key.data) if isinstance(key.data, _Input) else _read(pipe, key.data)):
            pipes.unregister(pipe)
            pipe.close()


def _read(pipe: IO[bytes], tail: _Tail) -> bool:
    """Whether there may be more."""
    with contextlib.suppress(BlockingIOError):
        if not (data := os.read(pipe.fileno(), _CHUNK)):
            return False
        tail.append(data)
    return True


def _write(pipe: IO[bytes], input: _Input) -> bool:
    """Whether there is more."""
    try:
        input.left = input.left[os.write(pipe.fileno(), input.left[:_CHUNK]) :]
    except BlockingIOError:
        return True
    except BrokenPipeError:
        return False  # it reads no further, and need not
    return bool(input.left)


def _has_ended(pid: int) -> bool:
    # WNOWAIT leaves it a zombie, which keeps its process group's number from being given away.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
