"""Kill -9 of a run between any two journal entries, on a real node: the next one goes on or goes back."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from flox_node.containerd.live.cri import CriClient
from flox_node.errors import OutsideError
from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bed.pod import HOST_ROOT
from tests.conftest import FULL
from tests.node.tree import tree

RELEASES = ("1.7", "2.1") if FULL else ("1.7",)


def _killed(box: NodeBox, at: int, *arguments: str) -> bool:
    """Run a command that is killed after its journal entry `at`; False when it ended before."""
    done = flox.beside(box, sys.executable, "-m", "tests.node.killed", str(at), *arguments, "--host-root", HOST_ROOT)
    assert done.returncode in (0, 128 + signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


class CriWatch:
    """Asks the node's CRI all the time; `longest_gap` is how many seconds it went without an answer at the most."""

    def __init__(self, box: NodeBox) -> None:
        self._socket = Path(f"/proc/{box.pid}/root/run/containerd/containerd.sock")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.longest_gap = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._stop.wait(0.05):
            with contextlib.suppress(OutsideError):
                CriClient(self._socket, timeout=2).status()
                answered = time.monotonic()
            self.longest_gap = max(self.longest_gap, time.monotonic() - answered)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.timeout(1800)
def test_a_killed_install_is_finished_by_the_next_or_undone_by_an_uninstall(release: str) -> None:
    with NodeBox(release) as box:
        before = tree(box)
        sandbox = box.cri.run_sandbox("runc")
        container = box.cri.run_container(sandbox, ["sleep", "3600"])
        pid = box.cri.container_pid(container)
        with CriWatch(box) as watch:
            for at in range(1, 100, 1 if FULL else 3):
                if not _killed(box, at, *flox.installation()):
                    break
                box.cri.wait_ready()
                assert "runc" in box.cri.handlers()
                if at % 2:  # the one or the other in turn: both are shown for each entry on the fake node
                    flox.install(box)
                    assert "flox" in box.cri.handlers()
                    assert flox.flox_node(box, "status").returncode == 0
                flox.flox_node(box, "uninstall", "--purge")
                assert tree(box) == before, f"after a kill at entry {at}"
                assert "flox" not in box.cri.handlers()
                assert box.cri.container_pid(container) == pid
        assert at > 15, "an install has more journal entries than that"
        # A busy machine takes seconds for a restart; a node that waits for its timer would take a minute.
        assert watch.longest_gap < 20, "containerd answers all along, but for the moment of its restart"
        flox.flox_node(box, "uninstall", "--purge")
        assert tree(box) == before


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.timeout(1800)
def test_a_killed_uninstall_is_finished_by_the_next(release: str) -> None:
    with NodeBox(release) as box:
        before = tree(box)
        for at in range(1, 100, 1 if FULL else 3):
            flox.install(box)
            if not _killed(box, at, "uninstall", "--purge"):
                break
            box.cri.wait_ready()
            flox.flox_node(box, "uninstall", "--purge")
            assert tree(box) == before, f"after a kill at entry {at}"
        assert at > 10
