"""The judge of a pod's annotations, by the examples that the shim's judge is held to as well (shim/internal/pod)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flox_node.environments.annotations import judge

RECORDS = Path(__file__).parents[1] / "records"
EXAMPLES = [
    (path.name.split(".")[1], example)
    for path in sorted(RECORDS.glob("annotations.*.json"))
    for example in json.loads(path.read_text())
]


def test_there_are_examples_of_both_kinds() -> None:
    assert {verdict for verdict, _ in EXAMPLES} == {"valid", "invalid"}
    assert len(EXAMPLES) > 60


@pytest.mark.parametrize(("verdict", "example"), EXAMPLES)
def test_an_example_is_judged_as_it_says(verdict: str, example: dict[str, Any]) -> None:
    wishes = judge(example["annotations"])
    if verdict == "valid":
        assert wishes.faults == ()
        assert str(wishes.reference) == example.get("reference", str(wishes.reference))
        assert wishes.mode == example.get("mode", wishes.mode)
        assert wishes.nix_mutable == example.get("nix_mutable", False)
    else:
        assert len(wishes.faults) == 1
        assert example["fault"] in wishes.faults[0]
    assert len(wishes.warnings) == len(example.get("warnings", []))
    for warning, text in zip(sorted(wishes.warnings), example.get("warnings", []), strict=True):
        assert text in warning
    for text in (*wishes.faults, *wishes.warnings):
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 700
    assert [name for name in example.get("in", []) if wishes.skipped(name)] == []
    assert [name for name in example.get("skipped", []) if not wishes.skipped(name)] == []
    assert [name for name in example.get("exec_in", []) if wishes.exec_skipped(name)] == []
    assert [name for name in example.get("exec_skipped", []) if not wishes.exec_skipped(name)] == []
