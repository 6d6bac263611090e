"""The command line: exit codes, remedies, and nothing slow at its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flox_node import errors

PROGRAM = Path(sys.executable).with_name("flox-node")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_the_help_names_the_commands_and_gives_an_example() -> None:
    told = run("--help").stdout
    assert all(command in told for command in ("plan", "install", "status", "uninstall", "payload", "containerd"))
    assert "flox-node plan --payload" in told


def test_every_command_has_an_example() -> None:
    from typer.main import get_command

    from flox_node.cli import app

    todo = [("flox-node", get_command(app))]
    while todo:
        name, command = todo.pop()
        assert command.epilog or hasattr(command, "commands"), f"{name} has no example"
        todo += [(f"{name} {child}", found) for child, found in getattr(command, "commands", {}).items()]


def test_a_wrong_option_is_a_usage_error() -> None:
    assert run("install", "--no-such-option").returncode == 2


def test_a_payload_that_is_not_there_is_named_with_a_remedy(tmp_path: Path) -> None:
    done = run("plan", "--payload", tmp_path / "none", "--host-root", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr
    assert "-> " in done.stderr


def test_errors_are_one_json_object_for_machines(tmp_path: Path) -> None:
    done = run("plan", "--payload", tmp_path / "none", "--host-root", tmp_path, "--json")
    body = json.loads(done.stdout)
    assert (body["error"], body["exit_code"], done.returncode) == ("usage", 2, 2)
    assert body["cause"]
    assert body["remedy"]


def test_a_node_without_us_has_a_status(tmp_path: Path) -> None:
    done = run("status", "--host-root", tmp_path, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["installed"] is False


def test_the_start_imports_nothing_slow() -> None:
    script = "import sys, flox_node.cli; print(*sorted(sys.modules))"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run([sys.executable, "-c", script], env=alone, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    slow = {"rich", "jeepney", "tomlkit", "zstandard", "sqlite3", "kubernetes", "requests", "grpc", "http.client"}
    assert not loaded & slow


CODES = {
    1: "bug",
    2: "usage",
    3: "refused",
    4: "rolled-back",
    5: "busy",
    6: "in-use",
    7: "drift",
    8: "corrupt",
    9: "outside",
}


@pytest.mark.parametrize("error", [errors.FloxNodeError, *errors.FloxNodeError.__subclasses__()])
def test_every_error_has_an_exit_code_of_the_table_and_a_remedy(error: type[errors.FloxNodeError]) -> None:
    assert error.exit_code in CODES
    if error.__module__ == errors.__name__:
        assert CODES[error.exit_code] == error.code
    assert error("cause").remedy
