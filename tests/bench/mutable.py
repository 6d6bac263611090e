"""What `flox.dev/nix-mutable` adds to the create of a container, on a node with a payload, where real Nix makes its
database."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bench.rows import Measurement, Row, row

ROUNDS = 50


def create_extra() -> Sequence[Row]:
    """Milliseconds of CreateContainer and StartContainer beyond those of a container that is not, alternating."""
    extra: list[float] = []
    with NodeBox("2.1") as box, tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        flox.install(box)
        flox.start_hub(box, Path(scratch))
        flox.load_empty_image(box)
        plain = flox.run_flox_sandbox(box, "demo/web", name="plain")
        mutable = flox.run_flox_sandbox(box, "demo/web", name="mutable", annotations={"flox.dev/nix-mutable": "true"})
        for number in range(ROUNDS):
            times = []
            for pod in (plain, mutable):
                started = time.perf_counter()
                container = flox.run_flox_container(box, pod, ["sleep", "600"], name=f"c{number}")
                times.append((time.perf_counter() - started) * 1000)
                box.cri.stop(container)
                box.cri.remove(container)
            extra.append(times[1] - times[0])
    return (row("mutable.create_extra_ms", extra, unit="ms", goal=60),)


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {create_extra: ("mutable.create_extra_ms",)}
