"""`plan -o`, `install PLAN` and `uninstall --plan`, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flox_node.cli import main
from flox_node.host import Host
from flox_node.payload import Payload
from tests.unit.fake_node import KUBEADM, FakeNode

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the fake node: its exit code, its output and what it tells beside."""
    monkeypatch.setattr(Host, "at", lambda _root: node.host)

    def call(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


@pytest.fixture
def folder(payload: Payload) -> Path:
    path: Path = vars(payload)["_folder"]
    return path


def test_a_plan_is_saved_looked_at_and_installed(node: FakeNode, run: Run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    code, out, _ = run("plan", "--payload", folder, "--deadline", "33", "-o", file)
    assert (code, "+++ /etc/containerd/config.toml" in out) == (0, True)
    assert json.loads(file.read_text())["payload"] == str(folder)
    code, _, err = run("install", file, "--adopt")
    assert (code, "A plan holds its settings" in err) == (2, True)
    node.config.write_text(KUBEADM + "# one more line\n")
    code, _, err = run("install", file)
    assert (code, "config.toml is not what the plan saw" in err) == (3, True)
    node.config.write_text(KUBEADM)
    code, out, _ = run("install", file, "--json")
    assert (code, json.loads(out)["changed"]) == (0, True)
    assert "flox" in node.containerd.handlers

    code, out, _ = run("uninstall", "--plan")
    assert (code, "undo: register the handler flox" in out, "-# flox-node: begin" in out) == (0, True, True)
    assert "flox" in node.containerd.handlers
    assert run("uninstall")[0] == 0
    assert run("uninstall", "--plan")[1].startswith("Nothing to do")


def test_an_install_without_payload_or_plan_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    code, _, err = run("install")
    assert (code, "Name it with --payload" in err) == (2, True)
    (tmp_path / "x.json").write_text("{}")
    code, _, err = run("install", tmp_path / "x.json")
    assert (code, "no plan of flox-node" in err) == (2, True)


def test_an_error_says_which_step_it_was(node: FakeNode, run: Run, folder: Path) -> None:
    node.containerd.ignore_handlers = {"flox"}
    code, _, err = run("install", "--payload", folder)
    assert code == 4
    assert "flox-node: register-handler: containerd restarted, but does not serve" in err
