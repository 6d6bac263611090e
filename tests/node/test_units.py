"""The node's own units: they work with no DaemonSet, and go with the uninstall."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import flox
from tests.bed.box import NodeBox

ROOTS = "nix/var/nix/gcroots/flox-node"


@pytest.fixture
def node(node_box: Callable[..., NodeBox]) -> NodeBox:
    box = node_box("1.7")
    flox.install(box)
    return box


def _show(box: NodeBox, unit: str, name: str) -> str:
    return box.run(["systemctl", "show", f"--property={name}", "--value", unit]).stdout.strip()


def _policy(box: NodeBox) -> dict[str, object]:
    policy: dict[str, object] = json.loads((box.root / "etc/flox-node/policy.json").read_text())
    return policy


def test_a_boot_finds_the_runtime_again_and_brings_the_image_and_forgets_dead_pods(node: NodeBox) -> None:
    assert _policy(node)["inner_runtime"] == "/usr/sbin/runc"
    # As k3s moves its own at every upgrade.
    node.run("mkdir -p /usr/local/sbin && mv /usr/sbin/runc /usr/local/sbin/runc")
    node.ctr("images", "remove", flox.EMPTY_IMAGE)
    dead = node.root / ROOTS / "pod-dead"
    dead.symlink_to(node.run(f"readlink /{ROOTS}/payload-*/flox").stdout.strip())
    os.utime(dead, (1, 1), follow_symlinks=False)
    node.reboot()
    assert _show(node, "flox-node-boot.service", "Result") == "success"
    assert _show(node, "flox-node-boot.service", "ExecMainStatus") == "0"
    assert _policy(node)["inner_runtime"] == "/usr/local/sbin/runc"
    assert "pinned" in node.ctr("images", "list", f"name=={flox.EMPTY_IMAGE}")
    assert not os.path.lexists(node.root / ROOTS / "pod-dead")
    assert json.loads(flox.flox_node(node, "status", "--json").stdout)["drift"] == []
    assert node.run("systemctl is-system-running").stdout == "running\n"


def test_no_registry_is_needed_for_the_image_of_flox_pods(node: NodeBox, tmp_path: Path) -> None:
    flox.start_hub(node, tmp_path)
    pod = flox.run_flox_sandbox(node, "demo/hello")
    container = flox.run_flox_container(node, pod, ["hello", "--greeting=no registry"])
    node.cri.wait_exited(container)
    assert node.cri.logs(container) == "no registry\n"


def test_what_a_pod_has_is_not_collected_and_what_nobody_uses_is(node: NodeBox, tmp_path: Path) -> None:
    flox.start_hub(node, tmp_path)
    pod = flox.run_flox_sandbox(node, "demo/hello")
    container = node.cri.run_container(pod, ["sleep", "3600"])
    gc = ["/opt/flox-node/bin/flox-node", "gc", "--days", "0", "--json"]
    assert json.loads(node.run(gc).stdout)["environments"] == []
    assert node.cri.exec(container, "hello", "--greeting=kept").stdout == "kept\n"
    store = set(os.listdir(node.root / "nix/store"))
    assert any(name.endswith("-hello-2.10") for name in store) or any("-hello-" in name for name in store)
    node.cri.remove_sandbox(pod)
    told = json.loads(node.run(gc).stdout)
    assert told["environments"] == ["demo/hello"]
    assert "freed" in told["nix"]
    left = set(os.listdir(node.root / "nix/store"))
    assert left < store
    assert not any("-hello-" in name for name in left)
    assert json.loads(flox.flox_node(node, "status", "--json").stdout)["drift"] == []
    pod = flox.run_flox_sandbox(node, "demo/hello", name="again")
    flox.run_flox_container(node, pod, ["hello"])


def test_the_timer_runs_from_the_install_on_and_no_unit_is_left_by_an_uninstall(node: NodeBox) -> None:
    assert _show(node, "flox-node-gc.timer", "ActiveState") == "active"
    node.run("systemctl start flox-node-gc.service")
    assert _show(node, "flox-node-rollback.service", "UnitFileState") == "enabled"
    flox.flox_node(node, "uninstall")
    listed = node.run("systemctl list-units --all --no-legend 'flox-node*'; ls /etc/systemd/system").stdout
    assert "flox-node" not in listed
