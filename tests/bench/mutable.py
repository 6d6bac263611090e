"""What `flox.dev/nix-mutable` adds to the create of a container; real Nix makes its database."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.bed.flox_daemon import FloxDaemon
from tests.bench.rows import Measurement, Row, row

ROUNDS = 50


def create_extra() -> Sequence[Row]:
    """Milliseconds of CreateContainer and StartContainer beyond those of a container that is not, alternating."""
    extra: list[float] = []
    with FloxDaemon("2.1").with_cli() as daemon:
        daemon.load_images()
        pods = (daemon.pod(), daemon.pod(nix_mutable="true"))
        for number in range(ROUNDS):
            times = []
            for pod in pods:
                started = time.perf_counter()
                container = daemon.cri.run_container(pod, ["sleep", "600"], name=f"c{number}")
                times.append((time.perf_counter() - started) * 1000)
                daemon.cri.stop(container)
                daemon.cri.remove(container)
            extra.append(times[1] - times[0])
    return (row("mutable.create_extra_ms", extra, unit="ms", goal=60),)


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {create_extra: ("mutable.create_extra_ms",)}
