"""The output layer: one envelope for machines, whole help lines, and how much is told on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from flox_node.cli import app, main
from flox_node.cli.output import Result, application, command, say
from flox_node.errors import BusyError, DriftError
from tests.unit.command import Done, call


def _leaves(name: str = "", found: Any = None) -> list[str]:
    found = found or get_command(app)
    if not hasattr(found, "commands"):
        return [name]
    return [leaf for child, each in found.commands.items() for leaf in _leaves(f"{name} {child}".strip(), each)]


@pytest.fixture
def example() -> typer.Typer:
    example = application("An example.")

    @command(example, example="flox-node do")
    def do(what: Annotated[str, typer.Option("--what")] = "well") -> Result:
        """Do it. And more."""
        say("working")
        say("a detail", detail=True)
        match what:
            case "busy":
                raise BusyError("Another run.")
            case "bug":
                raise ZeroDivisionError("by zero")
            case "disk":
                raise OSError(28, "No space left on device", "/nix")
            case "drift":
                return Result({"drift": 1}, "It is elsewhere.", DriftError("It is elsewhere."))
        return Result({"what": what}, lambda: ["one", "two"])

    @command(example, example="flox-node other-thing")
    def other_thing() -> Result:
        """Do another thing, the description of which is longer than a line of eighty columns: it is told as a whole."""
        return Result({}, b"bytes")

    return example


def envelope(done: Done) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(done.stdout)
    assert body["exit_code"] == done.exit_code
    return body


def test_a_result_is_text_for_people_and_one_object_for_machines(example: typer.Typer) -> None:
    assert call("do", of=example).stdout == "one\ntwo\n"
    assert envelope(call("do", "--json", of=example)) == {"exit_code": 0, "error": None, "what": "well"}
    assert call("other-thing", of=example).stdout_bytes == b"bytes"


@pytest.mark.parametrize(
    ("words", "code", "word"),
    [
        (("do", "--what=busy"), 5, "busy"),
        (("do", "--what=bug"), 1, "bug"),
        (("do", "--what=disk"), 9, "outside"),
        (("do", "--what=drift"), 7, "drift"),
        (("do", "--no-such-option"), 2, "usage"),
        (("do", "too-much"), 2, "usage"),
        (("no-such-command",), 2, "usage"),
        ((), 2, "usage"),
    ],
)
def test_an_error_has_one_envelope_whatever_it_is(
    example: typer.Typer, words: tuple[str, ...], code: int, word: str
) -> None:
    done = call(*words, "--json", of=example)
    body = envelope(done)
    assert (done.exit_code, body["error"]) == (code, word)
    assert body["cause"]
    assert body["remedy"]
    told = call(*words, of=example)
    assert told.exit_code == code
    if words:
        assert f"flox-node: {body['cause']}\n  -> {body['remedy']}" in told.stderr


def test_a_wrong_wish_for_json_is_answered_as_json(example: typer.Typer) -> None:
    assert envelope(call("do", "--json=1", of=example))["error"] == "usage"


def test_a_result_that_is_a_failure_is_told_as_well(example: typer.Typer) -> None:
    assert envelope(call("do", "--what=drift", "--json", of=example))["drift"] == 1
    assert call("do", "--what=drift", of=example).stdout == "It is elsewhere.\n"


def test_the_caller_of_main_need_not_be_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["install", "--json"])
    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"] == "usage"


@pytest.mark.parametrize("leaf", _leaves())
def test_every_command_answers_machines_and_can_be_quiet(leaf: str) -> None:
    shown = call(*leaf.split(), "--help").stdout
    for option in ("--json", "-v, --verbose", "-q, --quiet"):
        assert option in shown
    body = envelope(call(*leaf.split(), "--no-such-option", "--json"))
    assert body["error"] == "usage"
    assert f"flox-node {leaf}" in body["remedy"]


def test_on_the_way_as_much_is_told_as_was_asked_for(example: typer.Typer) -> None:
    assert call("do", of=example).stderr == "working\n"
    assert call("do", "--json", of=example).stderr == "working\n"
    assert call("do", "-q", of=example).stderr == ""
    assert call("do", "-v", of=example).stderr == "working\na detail\n"
    assert "BusyError" not in call("do", "--what=busy", of=example).stderr
    assert "Traceback" in call("do", "--what=busy", "--verbose", of=example).stderr
    assert call("do", "--what=busy", "-q", of=example).stderr.startswith("flox-node: Another run.")


def test_the_program_takes_quiet_before_the_command_too(tmp_path: Path) -> None:
    assert call("-q", "status", "--host-root", tmp_path).exit_code == 0


@pytest.mark.parametrize("columns", ["80", "300"])
def test_no_line_of_the_help_is_cut(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    groups = {leaf.rpartition(" ")[0] for leaf in _leaves()}
    for group in groups:
        shown = call(*group.split(), "--help").stdout
        listed = shown.partition("Commands:\n")[2]
        assert not re.search(r"\.\.\.$", listed, flags=re.MULTILINE), shown
        assert max(map(len, shown.splitlines())) <= 120


def test_ctrl_c_is_told_to_machines(monkeypatch: pytest.MonkeyPatch, example: typer.Typer) -> None:
    @command(example, example="flox-node wait")
    def wait() -> Result:
        """Wait."""
        raise KeyboardInterrupt

    assert (call("wait", of=example).exit_code, call("wait", of=example).stdout) == (130, "")
    assert envelope(call("wait", "--json", of=example))["error"] == "interrupted"


def test_the_reference_names_what_is_answered() -> None:
    from flox_node.findings import Finding
    from flox_node.kube.apply import Applied
    from flox_node.kube.rollout import NodeRow, Rollout
    from flox_node.plan import StepResult
    from flox_node.plan.drift import Drift
    from flox_node.plan.maintenance import Swept
    from flox_node.plan.status import NodeStatus

    text = (Path(__file__).parents[2] / "docs/reference.md").read_text().partition("\n## The annotations")[0]
    told = {
        names: re.findall(r"`(\w+)`", fields)
        for names, fields in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|$", text, flags=re.MULTILINE)
    }
    kinds = {
        "`status`": NodeStatus,
        "`boot`, `gc`": Swept,
        "`steps`": StepResult,
        "`drift`": Drift,
        "`checks`": Finding,
        "`objects`": Applied,
        "`nodes`": NodeRow,
    }
    for name, kind in kinds.items():
        assert told[name] == [field.name for field in dataclasses.fields(kind)], name
    assert set(told["`cluster status`"]) == {"installed", "state", *(each.name for each in dataclasses.fields(Rollout))}
    for names in told:
        for name in re.findall(r"`([a-z ]+)`", names):
            assert name in {*_leaves(), *(each.strip("`") for each in kinds)}, name


def test_what_a_node_says_is_no_markup(tmp_path: Path) -> None:
    from flox_node.cli.node import _status
    from flox_node.cli.output import _drawn
    from flox_node.plan.drift import Drift
    from flox_node.plan.status import NodeStatus

    drift = (Drift("key", 'the table [plugins."x"] is gone from [/etc/config.toml]'),)
    found = NodeStatus(True, False, True, "1", "p", "2.1", "/c", drift, problem="[red]x")
    (table,) = _status(found)
    shown = _drawn(table)
    assert '[plugins."x"] is gone from [/etc/config.toml]' in shown
    assert "[red]x" in shown


def test_no_command_shows_the_help_and_is_a_wrong_call() -> None:
    for group in ((), ("cluster",)):
        done = call(*group)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "Commands:" in done.stderr


def test_no_color_means_no_color(example: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    @command(example, example="flox-node table")
    def table() -> Result:
        """Show a table."""
        from rich.table import Table

        return Result({}, lambda: [Table("[red]x[/]", box=None)])

    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "31m" in call("table", of=example).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in call("table", of=example).stdout


def test_who_reads_no_further_is_no_error(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("flox-node")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        done = subprocess.run(
            [program, "status", "--host-root", tmp_path], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")
