"""What the shim costs a call: the time of a call that it only passes on, over that of the runtime behind it.

The inner runtime is /bin/true, which create kept in the bundle as it does for any container. So what is measured is the
shim's own start, its look at the arguments and the bundle, and the second exec. `posix_spawn` by a small loop in one
process; alternating.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bed.environment import ROOT, go_build
from tests.bench.rows import Measurement, Row, row

ROUNDS = 400


def pass_through() -> Sequence[Row]:
    """Milliseconds of `flox-runtime ... kill ID 15` over those of the inner runtime alone."""
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        shim = Path(scratch) / "flox-runtime"
        go_build(ROOT / "shim", shim)
        (Path(scratch) / "flox-inner-runtime").write_text("/bin/true\n")
        arguments = ["--root", "/run/containerd/runc/k8s.io", "--log", f"{scratch}/log.json", "--log-format", "json"]
        calls = [[str(shim), *arguments, "kill", "0" * 64, "15"], ["/bin/true"]]
        samples: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for call, into in zip(calls, samples, strict=True):
                into.append(_milliseconds(call))
    own = [ours - theirs for ours, theirs in zip(*samples, strict=True)]
    return (row("shim.own_ms", own, unit="ms", goal=1.5),)


def _milliseconds(command: list[str]) -> float:
    started = time.perf_counter()
    child = os.posix_spawn(command[0], command, {"PATH": "/usr/bin:/bin"})
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds * 1000


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {pass_through: ("shim.own_ms",)}
