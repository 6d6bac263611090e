"""The table of platforms in the reference is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from flox_node.platforms import Platform, all_platforms

REFERENCE = Path(__file__).parents[4] / "docs/reference.md"


def row(platform: Platform) -> str:
    if platform.refusal is not None:
        cells = [f"`{platform.name}`", platform.title, platform.refusal.reason, platform.refusal.instead]
    else:
        deadline = f"{platform.restart_deadline_s:.0f} s"
        cells = [f"`{platform.name}`", platform.title, platform.durable, platform.rewritten, deadline]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("platform", all_platforms(), ids=lambda platform: platform.name)
def test_a_platform_has_its_row_in_the_reference(platform: Platform) -> None:
    assert row(platform) in REFERENCE.read_text().splitlines()
