"""Uninstalling a node that others have worked on, and one whose containers still need us."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from flox_node.host import mounts
from flox_node.payload import Payload
from flox_node.plan import Outcome, StepResult, install, uninstall
from flox_node.plan.status import status
from flox_node.settings import Settings
from flox_node.state.ledger import RECEIPT
from tests.unit.fake_node import FakeNode

SETTINGS = Settings()
SHIM = "opt/flox-node/bin/flox-runtime"
BUNDLE = "run/containerd/io.containerd.runtime.v2.task/k8s.io/c0ffee/options.json"


def _ignore(_: StepResult) -> None:
    pass


def _bundle(node: FakeNode) -> Path:
    file = node.root / BUNDLE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"binary_name": f"/{SHIM}", "root": ""}))
    return file


def _kept(results: Sequence[StepResult]) -> set[str]:
    return {result.key.partition(":")[0] for result in results if result.outcome is Outcome.KEPT}


def test_whatever_of_ours_is_gone_before_an_uninstall_takes_the_rest_back(tmp_path: Path, payload: Payload) -> None:
    model = FakeNode(tmp_path / "model")
    before = model.tree()
    with model.containerd.serving():
        install(model.host, payload, SETTINGS, _ignore)
    ours = sorted(set(model.tree()) - set(before) - {RECEIPT.lstrip("/"), "var/lib/flox-node"})
    assert len(ours) > 20
    for number, path in enumerate(ours):
        node = FakeNode(tmp_path / f"n{number}")
        with node.containerd.serving():
            install(node.host, payload, SETTINGS, _ignore)
            victim = node.root / path
            if victim.is_dir() and not victim.is_symlink():
                shutil.rmtree(victim)
            else:
                victim.unlink()
            uninstall(node.host, SETTINGS, _ignore, purge=True)
            left = {name for name in node.tree() if name not in before}
            if path == "nix/.created-by-flox-node":
                assert {name.split("/")[0] for name in left} <= {"nix"}, "the mark says whose /nix it is"
            else:
                assert left == set(), f"without {path}"
            assert set(node.containerd.handlers) == {"runc"}


def test_without_a_receipt_an_install_takes_over_and_its_uninstall_takes_all_back(
    node: FakeNode, payload: Payload
) -> None:
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    (node.root / RECEIPT.lstrip("/")).unlink()
    install(node.host, payload, SETTINGS, _ignore)
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    left = {path for path in node.tree() if path not in before}
    assert all(path.endswith(".target.wants") for path in left), "nobody knows any more who made systemd's folders"


def test_a_forced_uninstall_leaves_the_shim_that_a_bundle_names_and_a_later_one_removes_it(
    node: FakeNode, payload: Payload
) -> None:
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    bundle = _bundle(node)
    results = uninstall(node.host, SETTINGS, _ignore, purge=True, force=True)
    assert {"switch-payload", "write-policy", "create-directory"} <= _kept(results)
    assert (node.root / SHIM).read_bytes() == b"shim"
    assert not (node.root / SHIM).is_symlink(), "the payload behind the link is gone"
    assert (node.root / SHIM).stat().st_mode & 0o111
    assert (node.root / "etc/flox-node/policy.json").exists(), "the shim reads which runtime to call"
    assert "flox" not in node.containerd.handlers
    assert status(node.host, SETTINGS).interrupted
    bundle.unlink()
    assert not _kept(uninstall(node.host, SETTINGS, _ignore, purge=True))
    assert node.tree() == before


def test_an_install_after_a_forced_uninstall_makes_the_node_whole_again(node: FakeNode, payload: Payload) -> None:
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    bundle = _bundle(node)
    uninstall(node.host, SETTINGS, _ignore, force=True)
    install(node.host, payload, SETTINGS, _ignore)
    found = status(node.host, SETTINGS)
    assert not found.drift
    assert not found.interrupted
    bundle.unlink()
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert node.tree() == before


def test_a_store_that_containers_have_mounted_is_not_purged(
    node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    with monkeypatch.context() as patch:
        shown = ("/nix/var/flox-node/views/k",)
        patch.setattr(mounts, "shown_elsewhere", lambda _files, path: shown if path == "/nix" else ())
        results = uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert [(result.key, result.outcome) for result in results if result.outcome is Outcome.KEPT] == [
        ("create-directory:/nix", Outcome.KEPT)
    ]
    assert (node.root / "nix/store").is_dir()
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert node.tree() == before


def test_what_others_put_into_our_folder_stays_and_is_told(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    (node.root / "opt/flox-node/theirs").write_text("x")
    results = uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert {result.reason for result in results if result.outcome is Outcome.KEPT} == {"/opt/flox-node is not empty"}
    assert (node.root / "opt/flox-node/theirs").exists()
    assert not (node.root / "var/lib/flox-node").exists(), "there is nothing to come back for"
