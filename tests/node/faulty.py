"""`python -m tests.node.faulty FAULT[,FAULT...] COMMAND...`: a `flox-node` command while something goes wrong.

Each fault is made where the node would make it: the wrong bytes are really on the node, the process is really killed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from flox_node.actions.register_handler import RegisterHandler
from flox_node.cli import main
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.live import commit, proof
from flox_node.host import Host
from flox_node.host.files import HostFiles
from flox_node.host.systemd import BUS_SOCKET, DbusSystemd

CONFIG = "/etc/containerd/config.toml"
SHIM = "/opt/flox-node/current/bin/flox-runtime"
FAULTS: dict[str, Callable[[], None]] = {}


def fault(function: Callable[[], None]) -> Callable[[], None]:
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


def _around(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function by `wrapper(original, *arguments)`."""
    original = getattr(owner, name)

    def replaced(*arguments: Any, **options: Any) -> Any:
        return wrapper(original, *arguments, **options)

    setattr(owner, name, replaced)


def _once(action: Callable[..., None]) -> Callable[..., Any]:
    """A wrapper that does something before the first call only."""
    done: list[bool] = []

    def wrapper(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            action(*arguments)
        return original(*arguments, **options)

    return wrapper


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@fault
def kill_before_restart() -> None:
    _around(DbusSystemd, "restart", _once(_die))


@fault
def kill_during_restart() -> None:
    _around(DbusSystemd, "restart", _once(lambda *_: threading.Timer(0.02, _die).start()))


@fault
def kill_after_restart() -> None:
    def then_die(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            original(*arguments, **options)
        finally:
            _die()

    _around(DbusSystemd, "restart", then_die)


@fault
def kill_after_confirmation() -> None:
    def then_die(original: Callable[..., bool], *arguments: Any) -> None:
        original(*arguments)
        _die()

    _around(HostFiles, "rename", then_die)


@fault
def hang_before_restart() -> None:
    _around(DbusSystemd, "restart", _once(lambda *_: time.sleep(15)))


def _candidate(change_bytes: Callable[[bytes], bytes]) -> None:
    """Let the command want other bytes, past all its proofs."""

    def wrapper(original: Callable[..., tuple[Edit, ...]], *arguments: Any) -> tuple[Edit, ...]:
        edits = original(*arguments)
        return tuple(dataclasses.replace(edit, after=change_bytes(edit.after or b"")) for edit in edits)

    _around(RegisterHandler, "_edits", wrapper)
    proof.prove = lambda *_: ""


@fault
def bad_config() -> None:
    _candidate(lambda data: data + b"\n[this is no TOML\n")


@fault
def without_cri() -> None:
    _candidate(lambda data: b'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n' + data)


@fault
def changed_handler() -> None:
    _candidate(lambda data: data.replace(b"SystemdCgroup = false", b"SystemdCgroup = true", 1))


def _shim(script: str) -> Callable[..., None]:
    def replace(host: Host, *_: object) -> None:
        host.files.remove(SHIM)
        host.files.write_atomic(SHIM, script.encode(), 0o755)

    return replace


@fault
def shim_broken_before_the_proof() -> None:
    _around(proof, "try_shim", _once(_shim("no program at all")))


@fault
def shim_hangs_before_the_proof() -> None:
    _around(proof, "try_shim", _once(_shim("#!/bin/sh\nexec sleep 1000\n")))


@fault
def shim_broken() -> None:
    _around(commit, "arm", _once(_shim("#!/bin/sh\nexit 1\n")))


@fault
def shim_hangs() -> None:
    _around(commit, "arm", _once(_shim('#!/bin/sh\n[ "$1" = features ] && exec sleep 1000\nexec runc "$@"\n')))


@fault
def rival_before_the_write() -> None:
    def write(original: Callable[..., None], files: HostFiles, path: str, *arguments: Any, **options: Any) -> None:
        if path == CONFIG and not written:
            written.append(True)
            files.real(path).write_bytes(files.read(path) + b"# by somebody else\n")
        original(files, path, *arguments, **options)

    written: list[bool] = []
    _around(HostFiles, "write_atomic", write)


@fault
def rival_after_the_write() -> None:
    def overwrite(systemd: DbusSystemd, *_: object) -> None:
        config = systemd._files.real(CONFIG)
        text = config.read_bytes().replace(b"runtimes.flox", b"runtimes.theirs")
        config.write_bytes(text + b"# by somebody else\n")

    _around(DbusSystemd, "restart", _once(overwrite))


@fault
def bus_gone() -> None:
    def unlink(systemd: DbusSystemd, *_: object) -> None:
        systemd._files.real(BUS_SOCKET).unlink()

    _around(DbusSystemd, "restart", _once(unlink))


@fault
def clock_jumps() -> None:
    """The wall clock leaps by a day, to and fro, at every look at it."""
    clock, leaps = time.time, itertools.cycle([86400.0, -86400.0])
    time.time = lambda: clock() + next(leaps)


if __name__ == "__main__":
    for name in sys.argv.pop(1).split(","):
        FAULTS[name]()
    main()
