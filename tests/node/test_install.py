"""A real node becomes a Flox node, runs Flox pods, and is as before: real systemd, containerd, runc, Nix and git."""

from __future__ import annotations

import json

import pytest

from tests.bed import flox, payload
from tests.bed.box import NodeBox
from tests.node.tree import tree

CONFIG = "etc/containerd/config.toml"


@pytest.fixture
def installed(box: NodeBox) -> NodeBox:
    """A Flox node of the test's own."""
    flox.install(box)
    return box


def test_a_second_install_writes_nothing_and_restarts_nothing(installed: NodeBox) -> None:
    pid = installed.main_pid("containerd.service")
    before = tree(installed)
    result = json.loads(flox.flox_node(installed, "install", "--payload", payload.folder(), "--json").stdout)
    assert result["changed"] is False
    assert installed.main_pid("containerd.service") == pid
    assert tree(installed) == before


def test_install_and_purge_leave_the_node_as_it_was_and_other_pods_run_on(box: NodeBox) -> None:
    pod = box.cri.run_sandbox("runc")
    container = box.cri.run_container(pod, ["sleep", "600"])
    pid = box.cri.container_pid(container)
    before = tree(box)
    config = (box.root / CONFIG).read_bytes()
    flox.install(box)
    assert box.cri.container_pid(container) == pid
    assert (box.root / CONFIG).read_bytes() != config
    assert "flox" in box.cri.handlers()
    assert box.main_pid("kubelet.service"), "the kubelet is bound to containerd and must run again"
    flox.flox_node(box, "uninstall", "--purge")
    assert (box.root / CONFIG).read_bytes() == config
    assert tree(box) == before
    assert "flox" not in box.cri.handlers()
    assert box.cri.exec(container, "echo", "alive").stdout == "alive\n"
    assert box.cri.container_pid(container) == pid


def test_a_plan_shows_the_diff_and_writes_nothing(box: NodeBox) -> None:
    before = tree(box)
    shown = flox.flox_node(box, "plan", "--payload", payload.folder()).stdout
    assert "+++ /etc/containerd/config.toml" in shown
    assert tree(box) == before
    assert not (box.root / "run/flox-node").exists()


def test_the_command_on_the_node_itself_tells_its_status(installed: NodeBox) -> None:
    told = json.loads(installed.run(["/opt/flox-node/bin/flox-node", "status", "--json"]).stdout)
    assert told["installed"]
    assert told["handler_live"]
    assert told["drift"] == []
