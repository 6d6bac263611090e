"""A cluster that outlives the command that started it: a process of its own owns it and removes it when told to.

The owner holds a lock on a file of the cache and writes into it, when the cluster is up, its pid and where its kubectl
is. The lock falls with the owner, however it ends, and what it owned is then stale and swept.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypedDict

from tests.bed import cache, scope
from tests.cluster.cluster import Cluster


class _State(TypedDict):
    pid: int
    kubectl: str


def up(name: str) -> Path:
    """Start a cluster unless it runs; a program that is its kubectl. RuntimeError with the log if it does not start."""
    if (running := kubectl(name)) is not None:
        return running
    _state(name).unlink(missing_ok=True)
    log = _state(name).with_suffix(".log")
    with cache.progress(name), log.open("wb") as output:
        command = [sys.executable, "-m", "tests.cluster", "--name", name, "hold"]
        owner = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while (program := kubectl(name)) is None:
                if owner.poll() is not None:
                    raise RuntimeError(f"The cluster does not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.1)
        except BaseException:
            owner.terminate()
            owner.wait()
            raise
    return program


def down(name: str) -> None:
    """Remove the cluster; done twice, or after its owner was killed, it removes what is left."""
    state = _read(name)
    if state and _is_owned(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["pid"], signal.SIGTERM)
        with _state(name).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    scope.sweep()
    for path in (_state(name), _state(name).with_suffix(".log")):
        path.unlink(missing_ok=True)


def kubectl(name: str) -> Path | None:
    """The kubectl of the cluster if it runs."""
    state = _read(name)
    return Path(state["kubectl"]) if state and _is_owned(name) else None


def hold(name: str) -> None:
    """Own a cluster until SIGTERM."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # removing everything must not be interrupted
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    with _owned(name) as state, Cluster() as cluster:
        words = shlex.join(str(word) for word in cluster.control_plane.kubectl())
        program = cluster.control_plane.scope.folder / "kubectl"
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        json.dump({"pid": os.getpid(), "kubectl": str(program)}, state)
        state.flush()
        while True:
            signal.pause()


@contextlib.contextmanager
def _owned(name: str) -> Iterator[IO[str]]:
    with _state(name).open("a") as state:
        fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state.truncate(0)
        yield state


def _is_owned(name: str) -> bool:
    with _state(name).open() as state:
        try:
            fcntl.flock(state, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read(name: str) -> _State | None:
    try:
        text = _state(name).read_text()
    except FileNotFoundError:
        return None
    if not text:
        return None
    state: _State = json.loads(text)
    return state


def _state(name: str) -> Path:
    return cache.folder() / f"{name}.json"
