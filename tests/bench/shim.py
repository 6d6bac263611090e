"""What the shim costs a call that it only passes on, beside what NVIDIA's container runtime costs it; and what it costs
a container between the activation and the command.

The inner runtime is /bin/true, which create kept in the bundle as it does for any container. So what is measured is the
program's own start, its look at the arguments, the bundle or the configuration, and the second exec. `posix_spawn` by a
small loop in one process; alternating.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bed import nvidia
from tests.bed.environment import ROOT, go_build
from tests.bench.rows import Measurement, Row, ratio, row

ROUNDS = 400
_INNER = "/bin/true"
_NVIDIA = f"""[nvidia-container-runtime]
debug = "/dev/null"
log-level = "error"
runtimes = ["{_INNER}"]
"""


def pass_through() -> Sequence[Row]:
    """Milliseconds of `RUNTIME ... kill ID 15` over those of the inner runtime alone, for the shim and for NVIDIA's."""
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        folder = Path(scratch)
        shim, theirs = folder / "flox-runtime", folder / "nvidia"
        go_build(ROOT / "shim", shim)
        shutil.copy(nvidia.program("nvidia-container-runtime"), theirs)
        (folder / "flox-inner-runtime").write_text(f"{_INNER}\n")
        (folder / "nvidia-container-runtime").mkdir()
        (folder / "nvidia-container-runtime/config.toml").write_text(_NVIDIA)
        environment = {"PATH": "/usr/bin:/bin", "XDG_CONFIG_HOME": scratch}
        arguments = ["--root", "/run/containerd/runc/k8s.io", "--log", f"{scratch}/log.json", "--log-format", "json"]
        call = [*arguments, "kill", "0" * 64, "15"]
        calls = [[str(shim), *call], [str(theirs), *call], [_INNER]]
        samples: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS):
            for command, into in zip(calls, samples, strict=True):
                into.append(_milliseconds(command, environment))
    ours, nvidias = ([with_it - alone for with_it, alone in zip(each, samples[2], strict=True)] for each in samples[:2])
    return (
        row("shim.own_ms", ours, unit="ms", goal=1.5),
        row("shim.nvidia_runtime_own_ms", nvidias, unit="ms", goal=None),
        ratio("shim.own_vs_nvidia_ratio", ours, nvidias, goal=0.5),
    )


def launcher() -> Sequence[Row]:
    """Milliseconds of a command that the launcher becomes, over those of the command alone."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "no busybox: apt-get install busybox-static"
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        root = Path(scratch)
        (root / ".flox-node").mkdir()
        go_build(ROOT / "shim", root / ".flox-node/launch")
        shutil.copy(busybox, root / "busybox")
        samples: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for before, into in zip((["/.flox-node/launch"], []), samples, strict=True):
                command = ["/usr/sbin/chroot", scratch, *before, "/busybox", "true"]
                into.append(_milliseconds(command, {"PATH": "/bin"}))
    own = [with_it - alone for with_it, alone in zip(*samples, strict=True)]
    return (row("launch.own_ms", own, unit="ms", goal=1.0),)


def _milliseconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    child = os.posix_spawn(command[0], command, environment)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds * 1000


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    pass_through: ("shim.own_ms", "shim.nvidia_runtime_own_ms", "shim.own_vs_nvidia_ratio"),
    launcher: ("launch.own_ms",),
}
