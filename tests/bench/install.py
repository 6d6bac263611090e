"""An install that has nothing to do, beside the tool that people compare it with, on a real node."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from tests.bed import flox, nvidia, payload
from tests.bed.box import NodeBox
from tests.bench.rows import Measurement, Row, cpu_seconds, ratio, row

ROUNDS = 9


def noop() -> Sequence[Row]:
    """CPU seconds (user and system, the entering of the node included) of a second install."""
    with NodeBox("2.1") as box:
        flox.install(box)
        seconds = [cpu_seconds(lambda: flox.install(box)) for _ in range(ROUNDS)]
    return (row("install.noop_cpu_s", seconds, unit="s", goal=0.5),)


def against_help() -> Sequence[Row]:
    """CPU seconds of an install that finds all done, and of a plan, over those of `flox-node --help`, on a node."""
    box = NodeBox("2.1")
    shutil.copytree(payload.folder(), box.folder / "disk/payload", symlinks=True)
    program = "/opt/flox-node/bin/flox-node"
    words = (["--help"], ["install", "--payload", "/payload"], ["plan", "--payload", "/payload"])
    samples: list[list[float]] = [[], [], []]
    with box:
        flox.install(box)
        for arguments in words:
            box.run([program, *arguments])
        for _ in range(ROUNDS):
            for arguments, into in zip(words, samples, strict=True):
                into.append(cpu_seconds(lambda arguments=arguments: box.run([program, *arguments])))  # type: ignore[misc]
    helped, noop, plan = samples
    return (
        ratio("install.noop_vs_help_ratio", noop, helped, goal=2.5),
        ratio("plan.vs_help_ratio", plan, helped, goal=3.0),
    )


def noop_against_nvidia_ctk() -> Sequence[Row]:
    """CPU seconds of a second install over those of a second `nvidia-ctk runtime configure`, on the node itself.

    Both work on the same /etc/containerd/config.toml. nvidia-ctk looks at that file alone; an install also asks
    the running containerd, compares the payload with the store, and looks at every unit and link of ours.
    """
    box = NodeBox("2.1")
    shutil.copytree(payload.folder(), box.folder / "disk/payload", symlinks=True)
    nvidia.put_ctk(box)
    theirs = ["nvidia-ctk", "runtime", "configure", "--runtime=containerd", "--config=/etc/containerd/config.toml"]
    ours = ["/opt/flox-node/bin/flox-node", "install", "--payload", "/payload"]
    samples: list[list[float]] = [[], []]
    with box:
        flox.install(box)
        box.run(theirs)
        box.run(["systemctl", "restart", "containerd"])
        box.cri.wait_ready()
        box.run(ours)
        for _ in range(ROUNDS):
            for command, into in zip((ours, theirs), samples, strict=True):
                into.append(cpu_seconds(lambda command=command: box.run(command)))  # type: ignore[misc]
    return (
        ratio("install.noop_vs_nvidia_ctk_ratio", *samples, goal=None),
        row("install.nvidia_ctk_noop_cpu_s", samples[1], unit="s", goal=None),
    )


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    noop: ("install.noop_cpu_s",),
    against_help: ("install.noop_vs_help_ratio", "plan.vs_help_ratio"),
    noop_against_nvidia_ctk: ("install.noop_vs_nvidia_ctk_ratio", "install.nvidia_ctk_noop_cpu_s"),
}
