"""Installing and uninstalling on a fake node: what is left after every way a run can end."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flox_node.containerd.live import change, commit
from flox_node.errors import BusyError, InUseError, OutsideError, RefusedError, RolledBackError
from flox_node.host import Host, HostFiles, selinux
from flox_node.host.lock import exclusive
from flox_node.payload import Payload
from flox_node.plan import Outcome, StepResult, install, preview, uninstall
from flox_node.plan.status import status
from flox_node.settings import Settings
from flox_node.state.ledger import JOURNAL, RECEIPT, Ledger
from tests.unit.fake_node import KUBEADM, FakeNode
from tests.unit.plan.conftest import HASH

SETTINGS = Settings()


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def _ignore(_: StepResult) -> None:
    pass


def test_an_install_registers_the_handler_and_restarts_containerd_once(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    assert node.containerd.restarts == 1
    assert node.containerd.handlers["flox"]["options"]["BinaryName"] == "/opt/flox-node/bin/flox-runtime"
    assert node.containerd.handlers["flox"]["options"]["SystemdCgroup"] is True
    assert KUBEADM.strip() in node.config.read_text()
    assert (node.root / "opt/flox-node/bin/flox-runtime").read_bytes() == b"shim"
    assert json.loads((node.root / "etc/flox-node/policy.json").read_text())["inner_runtime"] == "/usr/sbin/runc"


def test_a_second_install_writes_nothing_and_restarts_nothing(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    before = {path: path.lstat().st_mtime_ns for path in node.root.rglob("*") if "run" not in path.parts}
    results = install(node.host, payload, SETTINGS, _ignore)
    assert {result.outcome for result in results} == {Outcome.ALREADY}
    assert {path: path.lstat().st_mtime_ns for path in node.root.rglob("*") if "run" not in path.parts} == before
    assert node.containerd.restarts == 1


def test_the_units_that_a_restart_takes_down_run_again(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    assert node.systemd.active["kubelet.service"]


def test_a_purging_uninstall_leaves_the_node_as_it_was_to_the_byte(node: FakeNode, payload: Payload) -> None:
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert node.tree() == before
    assert "flox" not in node.containerd.handlers


def test_a_plain_uninstall_keeps_the_store_and_the_policy_and_a_later_purge_removes_them(
    node: FakeNode, payload: Payload
) -> None:
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    uninstall(node.host, SETTINGS, _ignore)
    kept = set(node.tree()) - set(before)
    assert f"nix/store/{HASH}-tools/bin/flox" in kept
    assert {path.split("/")[0] for path in kept} == {"nix", "etc"}
    assert node.config.read_text() == KUBEADM
    install(node.host, payload, SETTINGS, _ignore)
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert node.tree() == before


def test_a_store_that_was_there_before_us_survives_a_purge(node: FakeNode, payload: Payload) -> None:
    theirs = node.root / "nix/store/00000000000000000000000000000000-theirs"
    theirs.mkdir(parents=True)
    install(node.host, payload, SETTINGS, _ignore)
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert theirs.is_dir()


def test_what_others_wrote_into_the_configuration_since_survives_an_uninstall(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    node.config.write_text(node.config.read_text() + '\n[debug]\n  level = "debug"\n')
    uninstall(node.host, SETTINGS, _ignore)
    text = node.config.read_text()
    assert "flox" not in text
    assert text.startswith(KUBEADM)
    assert 'level = "debug"' in text


def test_a_plan_writes_nothing_and_shows_the_diff(node: FakeNode, payload: Payload) -> None:
    before = node.tree()
    steps = preview(node.host, payload, SETTINGS).steps
    assert node.tree() == before
    assert not (node.root / "run/flox-node").exists()
    diff = next(step.diff for step in steps if step.key.startswith("register-handler"))
    assert "+++ /etc/containerd/config.toml" in diff
    assert "-" not in {line[0] for line in diff.splitlines()[2:]}, "nothing of theirs goes"


def _kill_points(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch, at: int) -> bool:
    """Run with a kill right after the journal entry number `at`; False when the run has fewer entries."""
    entries = 0
    append = Ledger._append

    def counting(self: Ledger, entry: dict[str, object]) -> None:
        nonlocal entries
        append(self, entry)
        entries += 1
        if entries == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_append", counting)
        try:
            run()
        except Killed:
            return True
    return False


def test_an_install_killed_after_any_journal_entry_is_finished_by_the_next(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 100):
        node = FakeNode(tmp_path / f"n{at}")
        before = node.tree()
        with node.containerd.serving():
            if not _kill_points(partial(install, node.host, payload, SETTINGS, _ignore), monkeypatch, at):
                break
            assert status(node.host, SETTINGS).interrupted
            install(node.host, payload, SETTINGS, _ignore)
            assert not status(node.host, SETTINGS).drift
            assert "flox" in node.containerd.handlers
            uninstall(node.host, SETTINGS, _ignore, purge=True)
            assert node.tree() == before
    assert at > 15, "an install has more journal entries than that"


def test_an_install_killed_after_any_journal_entry_is_undone_by_an_uninstall(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 100):
        node = FakeNode(tmp_path / f"n{at}")
        before = node.tree()
        with node.containerd.serving():
            if not _kill_points(partial(install, node.host, payload, SETTINGS, _ignore), monkeypatch, at):
                break
            uninstall(node.host, SETTINGS, _ignore, purge=True)
            assert node.tree() == before
            assert set(node.containerd.handlers) == {"runc"}
    assert at > 15


def test_an_uninstall_killed_after_any_journal_entry_is_finished_by_the_next(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 100):
        node = FakeNode(tmp_path / f"n{at}")
        before = node.tree()
        with node.containerd.serving():
            install(node.host, payload, SETTINGS, _ignore)
            killed = _kill_points(partial(uninstall, node.host, SETTINGS, _ignore, purge=True), monkeypatch, at)
            if not killed:
                break
            uninstall(node.host, SETTINGS, _ignore, purge=True)
            assert node.tree() == before
    assert at > 10


def test_a_containerd_that_does_not_serve_the_handler_gets_its_old_bytes_back(node: FakeNode, payload: Payload) -> None:
    node.containerd.ignore_handlers = {"flox"}
    with pytest.raises(RolledBackError, match="does not serve the handler flox"):
        install(node.host, payload, SETTINGS, _ignore)
    assert node.config.read_text() == KUBEADM
    assert node.systemd.active["kubelet.service"]


def test_a_containerd_that_loses_a_former_handler_gets_its_old_bytes_back(node: FakeNode, payload: Payload) -> None:
    node.containerd.ignore_handlers = {"runc"}
    with pytest.raises(RolledBackError, match="lost or changed the handler runc"):
        install(node.host, payload, SETTINGS, _ignore)
    assert node.config.read_text() == KUBEADM


def test_a_containerd_that_stays_down_is_reported_with_the_old_bytes_in_place(
    node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change, "_GRACE_S", 1.0)
    node.containerd.refuses_to_start = True
    with pytest.raises(OutsideError, match="The old configuration is back"):
        install(node.host, payload, Settings(deadline_s=0.5), _ignore)
    assert node.config.read_text() == KUBEADM


def test_nothing_is_armed_nor_written_where_systemd_starts_no_timer(
    node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OutsideError("systemd starts nothing more")

    with monkeypatch.context() as patch:
        patch.setattr(node.systemd, "run_later", refuse)
        with pytest.raises(OutsideError, match="starts nothing more"):
            install(node.host, payload, SETTINGS, _ignore)
    assert not commit.is_pending(node.host), "the next boot would undo what never was done"
    assert node.config.read_text() == KUBEADM
    assert node.containerd.restarts == 0


def test_a_change_that_is_confirmed_too_late_is_a_failure_and_says_so(
    node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The containerd is fine, but the slow way back came first: what it left is what the run must tell."""
    confirm = commit.confirm

    def late(host: Host) -> bool:
        if commit.is_pending(host):
            node.systemd.fire("flox-node-deadline")
        return confirm(host)

    monkeypatch.setattr(commit, "confirm", late)
    with pytest.raises(RolledBackError, match=r"was not confirmed within 300 s\. The old configuration is live again"):
        install(node.host, payload, Settings(deadline_s=300), _ignore)
    assert node.config.read_text() == KUBEADM
    assert "flox" not in node.containerd.handlers
    assert not commit.is_pending(node.host)


@pytest.mark.parametrize(
    ("unit", "pods", "why"),
    [
        ({"kill_mode": "mixed"}, True, "KillMode=mixed .* would kill the 1 pods"),
        ({"kill_mode": "control-group"}, True, "KillMode=control-group .* would kill the 1 pods"),
        ({"stale": True}, False, "were changed since systemd read them"),
        ({"manual_restart": False}, False, "may not be restarted by hand"),
        ({"start_command": ("/usr/bin/containerd", "--config", "/etc/other.toml")}, False, "would start it with"),
    ],
    ids=["mixed", "control-group", "stale", "by-hand", "other-config"],
)
def test_a_containerd_that_a_restart_would_harm_is_not_restarted(
    node: FakeNode, payload: Payload, unit: dict[str, Any], pods: bool, why: str
) -> None:
    node.systemd.unit = dataclasses.replace(node.systemd.unit, **unit)
    node.containerd.sandboxes = [("web", "runc")] if pods else []
    with pytest.raises(RefusedError, match=why):
        install(node.host, payload, SETTINGS, _ignore)
    assert node.config.read_text() == KUBEADM
    assert node.containerd.restarts == 0


def test_a_configuration_that_cannot_be_edited_is_refused_before_anything_of_it_is_written(
    tmp_path: Path, payload: Payload
) -> None:
    node = FakeNode(tmp_path / "node", config='version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  x = 1\n')
    node.containerd.handlers = {"runc": {"runtimeType": "io.containerd.runc.v2", "options": None}}
    node.config.write_text('disabled_plugins = ["io.containerd.grpc.v1.cri"]\nversion = 2\n')
    with node.containerd.serving(), pytest.raises(RefusedError, match="disabled"):
        install(node.host, payload, SETTINGS, _ignore)
    assert node.config.read_text() == 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\nversion = 2\n'
    assert node.containerd.restarts == 0


def test_an_uninstall_is_refused_while_flox_pods_run_and_names_them(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    node.containerd.sandboxes = [("web", "flox"), ("other", "runc")]
    with pytest.raises(InUseError, match="default/web"):
        uninstall(node.host, SETTINGS, _ignore)
    assert "flox" in node.containerd.handlers
    uninstall(node.host, SETTINGS, _ignore, force=True)
    assert "flox" not in node.containerd.handlers


def test_an_uninstall_of_a_node_without_us_does_nothing(node: FakeNode) -> None:
    before = node.tree()
    assert uninstall(node.host, SETTINGS, _ignore) == []
    assert node.tree() == before
    assert node.containerd.restarts == 0


def test_two_runs_at_once_are_refused(node: FakeNode, payload: Payload) -> None:
    with exclusive(node.host.files), pytest.raises(BusyError, match="Another run"):
        install(node.host, payload, SETTINGS, _ignore)


def test_a_repair_captures_what_the_other_tool_wrote(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    theirs = KUBEADM.replace("pause:3.9", "pause:3.10")
    node.config.write_text(theirs)
    node.containerd.read_config()  # it restarts containerd, as such tools do
    found = status(node.host, SETTINGS)
    assert [drift.key for drift in found.drift] == ["register-handler"]
    install(node.host, payload, SETTINGS, _ignore)
    assert not status(node.host, SETTINGS).drift
    uninstall(node.host, SETTINGS, _ignore)
    assert node.config.read_text() == theirs


@pytest.mark.parametrize("found", [False, True], ids=["a-store-of-ours", "a-store-that-was-there"])
def test_a_repair_labels_what_is_ours_anew_and_nothing_else(node: FakeNode, payload: Payload, found: bool) -> None:
    theirs = node.root / "nix/store/theirs"
    if found:
        theirs.mkdir(parents=True)
    (node.root / "sys/fs/selinux").mkdir(parents=True)
    (node.root / "sys/fs/selinux/enforce").write_text("1")
    install(node.host, payload, SETTINGS, _ignore)
    theirs.mkdir(exist_ok=True)
    right = {
        node.root / "opt/flox-node/current/bin/flox-runtime": "bin_t",
        node.root / payload.manifest.store_paths[0].path.lstrip("/"): "usr_t",
        node.root / "etc/systemd/system/flox-node-boot.service": "systemd_unit_file_t",
        node.root / "etc/flox-node/policy.json": "etc_t",
    }
    wrong = dict.fromkeys((*right, theirs, node.config), "default_t")
    for path in wrong:
        os.setxattr(path, selinux.ATTRIBUTE, b"system_u:object_r:default_t:s0\0")
    install(node.host, payload, SETTINGS, _ignore)
    assert {path: selinux.type_at(path) for path in wrong} == wrong
    repair = Settings(repair=True)
    assert [step.key for step in install(node.host, payload, repair, _ignore) if step.outcome is Outcome.DONE] == [
        "labels"
    ]
    assert {path: selinux.type_at(path) for path in right} == right
    assert selinux.type_at(node.config) == "default_t"
    assert selinux.type_at(theirs) == ("default_t" if found else "usr_t")
    assert {step.outcome for step in install(node.host, payload, repair, _ignore)} == {Outcome.ALREADY}


def test_a_foreign_handler_is_refused_and_an_adopted_one_comes_back_with_the_uninstall(
    tmp_path: Path, payload: Payload
) -> None:
    foreign = f"""{KUBEADM}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.flox]
  runtime_type = "io.containerd.runc.v2"
  runtime_path = "/usr/local/bin/containerd-shim-flox-v2"
"""
    node = FakeNode(tmp_path / "node", config=foreign)
    with node.containerd.serving():
        with pytest.raises(RefusedError, match="not ours"):
            install(node.host, payload, SETTINGS, _ignore)
        assert node.config.read_text() == foreign
        install(node.host, payload, Settings(adopt=True), _ignore)
        assert node.containerd.handlers["flox"]["options"]["BinaryName"] == "/opt/flox-node/bin/flox-runtime"
        install(node.host, payload, SETTINGS, _ignore)
        uninstall(node.host, SETTINGS, _ignore, purge=True)
        assert node.config.read_text() == foreign


def test_one_concurrent_write_is_taken_in_and_a_second_is_an_error(
    node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    write_atomic = HostFiles.write_atomic

    def with_a_rival(self: HostFiles, path: str, data: bytes, mode: int = 0o644, **options: bytes | None) -> None:
        nonlocal writes
        if path == "/etc/containerd/config.toml" and writes < rival_writes:
            writes += 1
            node.config.write_text(node.config.read_text() + f"# rival {writes}\n")
        write_atomic(self, path, data, mode, **options)

    monkeypatch.setattr(HostFiles, "write_atomic", with_a_rival)
    rival_writes = 2
    with pytest.raises(BusyError):
        install(node.host, payload, SETTINGS, _ignore)
    assert node.config.read_text() == f"{KUBEADM}# rival 1\n# rival 2\n"
    assert node.containerd.restarts == 0
    rival_writes = 3
    install(node.host, payload, SETTINGS, _ignore)
    assert "# rival 3" in node.config.read_text()
    assert "flox" in node.containerd.handlers


def test_a_receipt_and_no_journal_are_left_by_an_install(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    assert node.host.files.exists(RECEIPT)
    assert not node.host.files.exists(JOURNAL)
    found = status(node.host, SETTINGS)
    assert found.installed
    assert found.handler_live
    assert found.payload_id == payload.manifest.id
