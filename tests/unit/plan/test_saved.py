"""A plan in a file is what is installed, or nothing is; an uninstall is shown before it is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flox_node.errors import FloxNodeError, InUseError, RefusedError, UsageError
from flox_node.payload import Payload
from flox_node.plan import Outcome, StepResult, agreement, install, preview, preview_uninstall, uninstall
from flox_node.plan.saved import SavedPlan, parse
from flox_node.settings import Settings
from tests.unit.fake_node import KUBEADM, FakeNode

SETTINGS = Settings(restarts_per_hour=9, deadline_s=30.0)


def _ignore(_: StepResult) -> None:
    pass


def _plan(node: FakeNode, payload: Payload, source: str = "/payload") -> SavedPlan:
    found = agreement(node.host, payload, SETTINGS, preview(node.host, payload, SETTINGS), source)
    written = json.dumps(found.to_json()).encode()
    assert parse(written) == found
    return parse(written)


def test_a_saved_plan_is_installed_with_its_settings(node: FakeNode, payload: Payload) -> None:
    before = node.tree()
    plan = _plan(node, payload)
    assert node.tree() == before
    assert (plan.settings, plan.payload) == (SETTINGS, "/payload")
    install(node.host, payload, plan.settings, _ignore, plan)
    assert "flox" in node.containerd.handlers


def _edited(node: FakeNode) -> None:
    node.config.write_text(KUBEADM.replace("pause:3.9", "pause:3.10"))
    node.containerd.read_config()


def _another_release(node: FakeNode) -> None:
    node.containerd.version = "1.7.25"


def _another_machine(node: FakeNode) -> None:
    (node.root / "etc/machine-id").write_text("fedcba\n")


def _something_done(node: FakeNode) -> None:
    (node.root / "opt/flox-node").mkdir()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_edited, "/etc/containerd/config.toml is not what the plan saw"),
        (_another_release, r"containerd 1\.7\.24 with .*now it is 1\.7\.25"),
        (_another_machine, "with machine id 0123456789abcdef, and now it is fedcba"),
        (_something_done, "another thing of create-directory:/opt/flox-node"),
    ],
)
def test_a_node_that_is_no_longer_what_the_plan_saw_is_left_alone(
    node: FakeNode, payload: Payload, change: Callable[[FakeNode], None], says: str
) -> None:
    plan = _plan(node, payload)
    change(node)
    before = node.tree()
    with pytest.raises(RefusedError, match=says):
        install(node.host, payload, plan.settings, _ignore, plan)
    assert node.tree() == before


def test_a_source_that_may_hold_a_secret_is_not_written_down(node: FakeNode, payload: Payload) -> None:
    assert _plan(node, payload, "https://bucket.example/p.tar.zst?X-Amz-Signature=s3cret").payload == ""


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '"x"', '{"schema_version": 2}', '{"schema_version": 1, "settings": {"x": 1}}', "\xff", "[" * 9999],
)
def test_what_is_no_plan_is_told(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text.encode("latin-1"))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"settings": {"deadline_s": "soon"}},
        {"settings": {"deadline_s": 0.5}},
        {"settings": {"restarts_per_hour": True}},
        {"settings": {"startup_taints": ["node.kubernetes.io/unreachable"]}},
        {"settings": {"share": "all"}},
        {"settings": {"repair": 1}},
        {"settings": {"policy": {}}},
        {"settings": {"unheard-of": 1}},
        {"seen": []},
        {"seen": {"/etc": 1}},
        {"steps": [1]},
        {"steps": [["a", "b", "c", None]]},
        {"payload": ["/payload"]},
        {"machine_id": None},
        {"more": ""},
    ],
    ids=str,
)
def test_a_plan_that_somebody_spoiled_is_none(node: FakeNode, payload: Payload, change: dict[str, Any]) -> None:
    spoiled = {**json.loads(json.dumps(_plan(node, payload).to_json())), **change}
    with pytest.raises(UsageError, match=r"plan") as caught:
        parse(json.dumps(spoiled).encode())
    assert "flox-node plan -o" in caught.value.remedy


def test_an_uninstall_is_shown_and_nothing_changed(node: FakeNode, payload: Payload) -> None:
    assert preview_uninstall(node.host, SETTINGS) == []
    install(node.host, payload, SETTINGS, _ignore)
    before = node.tree()
    steps = preview_uninstall(node.host, SETTINGS)
    assert node.tree() == before
    assert node.containerd.restarts == 1
    assert [step.key for step in steps] == [step.key for step in uninstall(node.host, SETTINGS, _ignore)]
    assert steps[0].key.startswith("register-handler")
    assert "-# flox-node: begin" in steps[0].diff
    kept = {step.key for step in steps if step.outcome is Outcome.KEPT}
    assert kept == {"create-directory:/nix", "create-directory:/etc/flox-node", "write-policy"}


def test_the_preview_of_an_uninstall_refuses_what_the_uninstall_refuses(node: FakeNode, payload: Payload) -> None:
    install(node.host, payload, SETTINGS, _ignore)
    node.containerd.sandboxes = [("web", "flox")]
    with pytest.raises(InUseError, match="default/web"):
        preview_uninstall(node.host, SETTINGS)
    assert preview_uninstall(node.host, SETTINGS, force=True)


def test_an_error_names_the_action_that_failed(node: FakeNode, payload: Payload) -> None:
    node.containerd.ignore_handlers = {"flox"}
    with pytest.raises(FloxNodeError) as caught:
        install(node.host, payload, SETTINGS, _ignore)
    assert caught.value.as_dict()["action"] == "register-handler"
