"""Every `flox-node` command in the documentation is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from flox_node.cli import app
from flox_node.state.policy import Policy
from flox_node.state.policy_text import applied, rendered

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            found += [(page.name, line.split("#")[0].strip()) for line in block.splitlines() if line.strip()]
    return found


@pytest.mark.parametrize(("page", "line"), [pair for pair in _commands() if pair[1].startswith("flox-node ")])
def test_a_command_in_the_documentation_is_understood(page: str, line: str) -> None:
    words = shlex.split(line.split(">")[0])[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{page}: no command {name!r} in {line!r}"
        command = command.commands[name]
    command.make_context(command.name, words)  # exits with 2 for an option or argument that does not exist


@pytest.mark.parametrize(("page", "line"), [pair for pair in _commands() if pair[1].startswith("make ")])
def test_a_make_target_in_the_documentation_exists(page: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert line.split()[1] in targets, f"{page}: {line}"


def test_the_reference_shows_the_whole_policy() -> None:
    assert f"```toml\n{rendered(Policy())}```" in (ROOT / "docs/reference.md").read_text()


def test_the_reference_says_of_each_code_of_a_refusal_whether_it_is_final() -> None:
    from flox_node.environments import errors

    rows = re.findall(r"^\| `([a-z-]+)` \| (yes|no) \|", (ROOT / "docs/reference.md").read_text(), flags=re.MULTILINE)
    final = {kind.code: errors.is_final(kind("")) for kind in errors.KINDS}
    assert dict(rows) == {code: "yes" if is_final else "no" for code, is_final in {**final, "bug": False}.items()}


def test_every_policy_in_the_documentation_is_one() -> None:
    for block in re.findall(
        r"^```toml\n# policy\.toml\n(.*?)^```", "".join(page.read_text() for page in PAGES), re.M | re.S
    ):
        applied(block, None)


def test_relative_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_reference_names_each_reason_event_and_metric_and_no_other() -> None:
    from flox_node.agent.exchange import NodeState
    from flox_node.agent.metrics import exposition
    from flox_node.agent.node import Counters
    from flox_node.agent.seen import Seen
    from flox_node.kube.names import Happening, PodHappening, Reason

    text = (ROOT / "docs/reference.md").read_text()
    told = text.partition("## What a node tells\n")[2].partition("\n## Health and metrics\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", told, flags=re.MULTILINE) == [reason.value for reason in Reason]
    assert sorted(set(re.findall(r"`(Flox[A-Z]\w+)`", told)) - {"FloxRuntimeReady"}) == sorted(
        [*Happening, *PodHappening]
    )
    gauges = dict.fromkeys(
        ("store_bytes", "store_paths", "store_free_ratio", "store_free_inodes_ratio", "roots", "sandboxes"), 0.0
    )
    page = exposition(NodeState(), Seen(gauges=gauges), Counters(failures={"Failed": 1}, phases={"place": 1}))
    names = set(re.findall(r"^(flox_node_\w+)(?=[{ ])", page.decode(), flags=re.MULTILINE))
    metrics = text.partition("\n## Health and metrics\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(flox_node_\w+)`", metrics)) == names


def test_the_map_of_the_code_names_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "installer/flox_node").glob("*/__init__.py")}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert {room for room in rooms if f"`{room}/" not in text} == set()
