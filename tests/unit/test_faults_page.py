"""The table of faults names tests that exist, and no fault test is missing in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _tests_of(*files: Path) -> set[str]:
    return {name for file in files for name in re.findall(r"^def (test_\w+)\(", file.read_text(), flags=re.MULTILINE)}


def test_every_fault_names_a_test_that_exists_and_every_test_of_faults_is_named() -> None:
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("|")][2:]
    named = [set(re.findall(r"`(test_\w+)`", row)) for row in rows]
    assert all(named), "each row names its test"
    assert set().union(*named) <= _tests_of(*(ROOT / "tests").rglob("test_*.py"))
    assert _tests_of(ROOT / "tests/node/test_faults.py") <= set().union(*named)
