"""The page for authors of pods: its examples are judged as the shim judges them, and it names every annotation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flox_node.environments.annotations import ANNOTATIONS, judge

PAGE = (Path(__file__).parents[2] / "docs/pods.md").read_text()
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("pod", EXAMPLES, ids=lambda pod: str(pod["metadata"]["name"]))
def test_an_example_is_a_pod_that_the_shim_takes(pod: dict[str, dict[str, object]]) -> None:
    wishes = judge(pod["metadata"]["annotations"])  # type: ignore[arg-type]
    assert (wishes.faults, wishes.warnings) == ((), ())
    assert pod["spec"]["runtimeClassName"] == "flox"


def test_every_annotation_is_in_the_table_and_no_other() -> None:
    assert set(re.findall(r"^\| `(flox\.dev/[a-z-]+)` \|", PAGE, flags=re.MULTILINE)) == set(ANNOTATIONS)
