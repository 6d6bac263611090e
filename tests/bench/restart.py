"""How long a node has no CRI while an install restarts its containerd."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from flox_node.containerd.live.cri import CriClient
from flox_node.errors import OutsideError
from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bed.machine import SOCKET
from tests.bench.rows import Measurement, Row, row

ROUNDS = 5
_INTERVAL_S = 0.005


def cri_gap() -> Sequence[Row]:
    """The longest time between two answers of the CRI, asked every 5 ms during an install; 20 pods run on the node."""
    gaps = []
    with NodeBox("2.1") as box:
        for number in range(20):
            sandbox = box.cri.run_sandbox("runc", name=f"bystander-{number}")
            box.cri.run_container(sandbox, ["sleep", "3600"])
        for _ in range(ROUNDS):
            with _answers(box) as times:
                flox.install(box)
            gaps.append(max(later - earlier for earlier, later in pairwise(times)))
            flox.flox_node(box, "uninstall")
    return (row("restart.cri_gap_s", gaps, unit="s", goal=None),)


@contextmanager
def _answers(box: NodeBox) -> Iterator[list[float]]:
    """The moments at which the CRI answered, collected by a thread of its own."""
    times: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        client = CriClient(box.root / SOCKET)
        while not ended.is_set():
            try:
                client.status()
                times.append(time.perf_counter())
            except OutsideError:
                pass
            time.sleep(_INTERVAL_S)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {cri_gap: ("restart.cri_gap_s",)}
