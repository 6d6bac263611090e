"""`flox-node env`: the environments of a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flox_node.cli import app, output
from flox_node.environments import index, roots, verify
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.environments.verify import Verified

STORE_PATH = "/nix/store/bh6w6asdcbsvckn8a9xragcvxqc2gbjm-environment-run"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = output.run(app, ["env", *words])
    return code, capsys.readouterr().out


def test_list_shows_what_is_on_the_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--host-root", str(tmp_path))
    assert "No environment" in run(capsys, "list", *where)[1]
    paths = Paths(str(tmp_path))
    question = Question("https://hub/git", Reference("demo", "hello"), "e" * 40, "run", "x86_64-linux")
    roots.add("bh6w6asdcbsvckn8a9xragcvxqc2gbjm", STORE_PATH, paths)
    index.record(question, Resolution("demo/hello", 3, "e" * 40, "run", "x86_64-linux", STORE_PATH), paths, took_s=4.2)
    code, text = run(capsys, "list", *where)
    assert code == 0
    assert "demo/hello" in text
    assert STORE_PATH in text
    (told,) = json.loads(run(capsys, "list", "--json", *where)[1])["environments"]
    assert (told["environment"], told["generation"], told["mode"]) == ("demo/hello", 3, "run")
    assert index.last_took("demo/hello", paths) == 4.2


def test_a_wrong_environment_or_token_is_refused_before_anybody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "resolve", "hello")[0] == 2
    token = tmp_path / "token"
    token.write_text("ghp_other\n")
    code, text = run(capsys, "realise", "demo/hello", "--token-file", str(token), "--json")
    assert code == 2
    assert json.loads(text)["error"] == "bad-request"
    assert "ghp_other" not in text


def test_verify_names_what_is_damaged_and_what_was_mended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Verified(1, 7, {STORE_PATH: ["demo/hello (run)"]}, [], [])
    monkeypatch.setattr(verify, "verify", lambda *_, **__: found)
    code, text = run(capsys, "verify", "--json")
    told = json.loads(text)
    assert (code, told["error"], told["damaged"]) == (8, "corrupt", {STORE_PATH: ["demo/hello (run)"]})
    assert "env verify --repair" in told["remedy"]
    assert "pods" in json.loads(run(capsys, "verify", "--repair", "--json")[1])["remedy"]
    monkeypatch.setattr(verify, "verify", lambda *_, **__: Verified(1, 7, {}, [STORE_PATH], []))
    code, text = run(capsys, "verify", "--repair")
    assert code == 0
    assert f"repaired: {STORE_PATH}" in text
