"""Every `flox-node` command in the documentation is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from flox_node.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            found += [(page.name, line.split("#")[0].strip()) for line in block.splitlines() if line.strip()]
    return found


@pytest.mark.parametrize(("page", "line"), [pair for pair in _commands() if pair[1].startswith("flox-node ")])
def test_a_command_in_the_documentation_is_understood(page: str, line: str) -> None:
    words = shlex.split(line.split(">")[0])[1:]
    command: click.Command = typer.main.get_command(app)
    context: click.Context | None = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=command.name)
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"{page}: no command {name!r} in {line!r}"
        command = found
    command.make_context(command.name, list(words), parent=context, resilient_parsing=False)


@pytest.mark.parametrize(("page", "line"), [pair for pair in _commands() if pair[1].startswith("make ")])
def test_a_make_target_in_the_documentation_exists(page: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert line.split()[1] in targets, f"{page}: {line}"


def test_relative_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
