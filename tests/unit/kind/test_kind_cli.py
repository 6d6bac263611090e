"""`flox-node kind` as it is called: words, exit codes, and the script that only finds the command."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from flox_node.cli import app
from flox_node.cli.output import run
from tests.unit.machine import program

UP = Path(__file__).parents[3] / "daemonset/kind/up.sh"


@pytest.mark.parametrize(
    "words",
    [
        ["config", "--nix", "/srv/nix"],
        ["config", "--nix", "/srv/nix", "--prefix", "/opt/x", "--nodes", "2"],
        ["config", "--kind-version", "new"],
        ["up", "--name", "No_Name"],
        ["up", "--kubernetes", "latest"],
        ["up", "--nodes", "0"],
    ],
)
def test_wrong_words_are_told_before_anything_is_looked_at(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["kind", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "usage"


def test_the_printed_cluster_file_is_what_kind_reads(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(app, ["kind", "config", "--nodes", "2", "--port", "9090"]) == 0
    assert len(yaml.safe_load(capsysbinary.readouterr().out)["nodes"]) == 2


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"]], ids=["dash", "busybox"])
def test_the_script_hands_its_words_to_the_command_on_the_path(shell: list[str], tmp_path: Path) -> None:
    command = tmp_path / "flox-node"
    command.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [program(shell[0]), *shell[1:], str(UP), "--nodes", "3", "--name", "a b"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "kind|up|--nodes|3|--name|a b|"


def test_the_script_alone_says_where_the_command_comes_from(tmp_path: Path) -> None:
    script = tmp_path / "daemonset/kind/up.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes(UP.read_bytes())
    done = subprocess.run(
        ["dash", str(script)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 9
    assert "pip install" in done.stderr


def test_the_script_makes_the_command_in_a_source_tree_that_has_none(tmp_path: Path) -> None:
    script, programs = tmp_path / "daemonset/kind/up.sh", tmp_path / "bin"
    script.parent.mkdir(parents=True)
    programs.mkdir()
    script.write_bytes(UP.read_bytes())
    (tmp_path / "pyproject.toml").touch()
    make = programs / "make"
    make.write_text(
        "#!/bin/sh\n"
        '[ "$1 $3" = "-C setup" ] || exit 2\n'
        'mkdir -p "$2/.venv/bin"\n'
        'printf \'#!/bin/sh\\necho "$@"\\n\' >"$2/.venv/bin/flox-node"\n'
        'chmod 755 "$2/.venv/bin/flox-node"\n'
    )
    make.chmod(0o755)
    done = subprocess.run(
        ["dash", str(script), "--dry-run"],
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "kind up --dry-run\n"), done.stderr


def test_shellcheck_has_nothing_to_say_of_the_script() -> None:
    done = subprocess.run([program("shellcheck"), "-s", "sh", UP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
