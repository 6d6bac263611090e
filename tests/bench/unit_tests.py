"""What the unit tests cost whoever runs them before every commit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.rows import Measurement, Row, cpu_seconds, row

_ROOT = Path(__file__).parents[2]


def unit_tests() -> Sequence[Row]:
    """CPU seconds of one run of all of them, on every core as `make test-unit` does it."""
    words = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", "tests/unit"]
    seconds = cpu_seconds(lambda: subprocess.run(words, cwd=_ROOT, check=True, capture_output=True))
    return (row("unit_tests.cpu_s", [seconds], unit="s", goal=None),)


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {unit_tests: ("unit_tests.cpu_s",)}
