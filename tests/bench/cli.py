"""The command's own start-up, against what its command-line library costs by itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.rows import Measurement, Row, ratio, row

ROUNDS = 15
_PROGRAM = str(Path(sys.executable).with_name("flox-node"))


def help_against_typer() -> Sequence[Row]:
    """`flox-node --help` over `python -c 'import typer'`, alternating."""
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(_seconds([sys.executable, "-c", "import typer"]))
        ours.append(_seconds([_PROGRAM, "--help"]))
    return (
        ratio("cli.help_ratio", ours, theirs, goal=3.0),
        row("cli.help_s", ours, unit="s", goal=None),
    )


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {help_against_typer: ("cli.help_ratio", "cli.help_s")}
