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


class State(TypedDict):
    """What is known of a running cluster: its owner's pid, its release, its kubectl, the names of its scopes."""

    pid: int
    kubernetes: str
    ready_seconds: float
    kubectl: str
    scopes: list[str]


def up(name: str) -> State:
    """Start a cluster unless one runs. RuntimeError with the log if it does not start."""
    if state := running(name):
        return state
    _state(name).unlink(missing_ok=True)
    log = _state(name).with_suffix(".log")
    with cache.progress(name), log.open("wb") as output:
        command = [sys.executable, "-m", "tests.cluster", "--name", name, "hold"]
        owner = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while (state := running(name)) is None:
                if owner.poll() is not None:
                    raise RuntimeError(f"The cluster does not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.1)
        except BaseException:
            owner.terminate()
            owner.wait()
            raise
    return state


def down(name: str) -> None:
    """Remove the cluster; done twice, or after its owner was killed, it removes what is left."""
    if state := running(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["pid"], signal.SIGTERM)
        with _state(name).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    scope.sweep()
    for path in (_state(name), _state(name).with_suffix(".log")):
        path.unlink(missing_ok=True)


def running(name: str) -> State | None:
    """The cluster, if it is up and its owner lives."""
    try:
        with _state(name).open() as file:
            text = file.read()
            if not text or not _is_locked(file):
                return None
    except FileNotFoundError:
        return None
    state: State = json.loads(text)
    return state


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
        scopes = [cluster.control_plane.scope.name, *(node.folder.name for node in cluster.nodes)]
        description = State(
            pid=os.getpid(),
            kubernetes=cluster.kubernetes,
            ready_seconds=cluster.ready_seconds,
            kubectl=str(program),
            scopes=scopes,
        )
        json.dump(description, state)
        state.flush()
        while True:
            signal.pause()


@contextlib.contextmanager
def _owned(name: str) -> Iterator[IO[str]]:
    with _state(name).open("a") as state:
        fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state.truncate(0)
        yield state


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _state(name: str) -> Path:
    return cache.folder() / f"{name}.json"
