"""What the shim costs a call: the time of a call that it only passes on, over that of the runtime behind it.

The inner runtime is /bin/true, so what is measured is the shim's own start, its look at the arguments and the policy,
and the second exec. `posix_spawn` by a small loop in one process; alternating.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bed import golang
from tests.bench.rows import Measurement, Row, row

ROUNDS = 400
_SHIM = Path(__file__).parents[2] / "shim"


def pass_through() -> Sequence[Row]:
    """Milliseconds of `flox-runtime ... kill ID 15` over those of the inner runtime alone."""
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        shim = _build(Path(scratch))
        arguments = ["--root", "/run/containerd/runc/k8s.io", "--log", f"{scratch}/log.json", "--log-format", "json"]
        calls = [[str(shim), *arguments, "kill", "0" * 64, "15"], ["/bin/true"]]
        samples: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for call, into in zip(calls, samples, strict=True):
                into.append(_milliseconds(call))
    own = [ours - theirs for ours, theirs in zip(*samples, strict=True)]
    return (row("shim.own_ms", own, unit="ms", goal=1.5),)


def _build(scratch: Path) -> Path:
    # Its paths are moved at link time: the product has no setting for them.
    prefix = scratch / "node"
    (prefix / "etc/flox-node").mkdir(parents=True)
    (prefix / "etc/flox-node/policy.json").write_text('{"schema_version": 1, "inner_runtime": "/bin/true"}')
    shim = scratch / "flox-runtime"
    flags = f"-ldflags=-s -w -X flox.dev/flox-node/shim/internal/node.prefix={prefix}"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    subprocess.run(
        [golang.go(), "build", "-trimpath", flags, "-o", str(shim), "."], cwd=_SHIM, env=environment, check=True
    )
    return shim


def _milliseconds(command: list[str]) -> float:
    started = time.perf_counter()
    child = os.posix_spawn(command[0], command, {"PATH": "/usr/bin:/bin"})
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds * 1000


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {pass_through: ("shim.own_ms",)}
