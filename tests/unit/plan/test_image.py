"""An image with everything of an install that needs no running containerd, and the node that boots from it."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flox_node.eks.files import nodeconfig
from flox_node.eks.group import Group
from flox_node.errors import RefusedError
from flox_node.payload import Payload
from flox_node.plan import Outcome, StepResult, image, install, maintenance, uninstall
from flox_node.plan.status import status
from flox_node.settings import Settings
from flox_node.state.ledger import Ledger
from tests.unit.fake_node import PLUGIN, FakeNode

EKS = Settings(platform="eks-al2023")
FRAGMENT = "etc/eks/nodeadm.d/50-flox-node.yaml"
TEMPLATE = f"""\
version = 2
[plugins."{PLUGIN}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "/etc/containerd/base-runtime-spec.json"
[plugins."{PLUGIN}".containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = true
"""


def ignore(_: StepResult) -> None:
    pass


@pytest.fixture
def built(tmp_path: Path) -> FakeNode:
    """A machine that builds an image: nodeadm has configured no containerd, and none runs."""
    node = FakeNode(tmp_path / "image", config="")
    node.config.unlink()
    (node.root / "etc/eks/nodeadm.d").mkdir(parents=True)
    (node.root / "etc/machine-id").write_text("")
    return node


def boot(node: FakeNode) -> None:
    """What nodeadm makes of its template and the fragments, and a containerd that starts with it."""
    text = (node.root / FRAGMENT).read_text() if (node.root / FRAGMENT).exists() else ""
    lines = text.partition("    config: |\n")[2].splitlines()
    node.config.write_text(TEMPLATE + "\n".join(line[6:] for line in lines) + "\n")
    (node.root / "etc/containerd/base-runtime-spec.json").write_text("{}")
    (node.root / "etc/machine-id").write_text("0123456789abcdef\n")
    node.containerd.read_config()


def test_an_image_starts_nothing_and_names_no_machine(built: FakeNode, payload: Payload) -> None:
    before = built.tree()
    image.bake(built.host, payload, EKS, ignore)
    assert (built.containerd.restarts, built.systemd.reloads) == (0, 0)
    assert not built.config.exists()
    text = (built.root / FRAGMENT).read_text()
    assert 'base_runtime_spec = "/etc/containerd/base-runtime-spec.json"' in text
    assert "SystemdCgroup = true" in text
    receipt = Ledger.load(built.host.files).receipt
    assert receipt is not None
    assert receipt.machine_id == ""
    assert image.judge(built.host, EKS).problems == ()
    again = image.bake(built.host, payload, EKS, ignore)
    assert {step.outcome for step in again} == {Outcome.ALREADY}
    assert before.items() <= built.tree().items()


@pytest.mark.parametrize(("containerd", "kubernetes"), [("1.7.24", "1.29"), ("2.1.4", "1.35")])
def test_an_image_holds_the_nodeconfig_that_is_printed(
    containerd: str, kubernetes: str, tmp_path: Path, payload: Payload
) -> None:
    node = FakeNode(tmp_path / "image", version=containerd)
    (node.root / "etc/eks/nodeadm.d").mkdir(parents=True)
    image.bake(node.host, payload, EKS, ignore)

    def without_comments(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("#")]

    printed = nodeconfig(Group("demo", "eu-central-1", kubernetes=kubernetes))
    assert without_comments((node.root / FRAGMENT).read_text()) == without_comments(printed)


def test_a_node_of_the_image_is_whole_and_an_install_adopts_it(built: FakeNode, payload: Payload) -> None:
    before = built.tree()
    image.bake(built.host, payload, EKS, ignore)
    boot(built)
    with built.containerd.serving():
        assert set(built.containerd.handlers) == {"runc", "flox"}
        maintenance.boot(built.host, ignore)
        receipt = Ledger.load(built.host.files).receipt
        assert receipt is not None
        assert receipt.machine_id == "0123456789abcdef"
        found = status(built.host, EKS)
        assert (found.drift, found.handler_live, found.interrupted) == ((), True, False)
        booted = built.tree()
        assert {step.outcome for step in install(built.host, payload, EKS, ignore)} == {Outcome.ALREADY}
        assert built.tree() == booted
        assert built.containerd.restarts == 0
        uninstall(built.host, EKS, ignore, purge=True)
        left = set(built.tree()) - set(before)
        assert left == {"etc/containerd/config.toml", "etc/containerd/base-runtime-spec.json"}, "which nodeadm writes"
        assert "flox" not in tomllib.loads(built.config.read_text())["plugins"][PLUGIN]["containerd"]["runtimes"]


def test_a_build_that_was_killed_is_judged_so_and_finished_by_the_next_run(
    tmp_path: Path, payload: Payload, built: FakeNode
) -> None:
    image.bake(built.host, payload, EKS, ignore)
    whole = built.tree()
    steps = 0
    while True:
        node = FakeNode(tmp_path / f"killed-{steps}", config="")
        node.config.unlink()
        (node.root / "etc/eks/nodeadm.d").mkdir(parents=True)
        (node.root / "etc/machine-id").write_text("")
        killed = Killed(after=steps)
        try:
            image.bake(node.host, payload, EKS, killed)
        except KeyboardInterrupt:
            assert image.judge(node.host, EKS).problems
            image.bake(node.host, payload, EKS, ignore)
        assert image.judge(node.host, EKS).problems == ()
        assert node.tree().keys() == whole.keys()
        if killed.after >= 0:
            break
        steps += 1
    assert steps > 5


@dataclass
class Killed:
    """Tells of nothing, and is the end of the run once so many steps were done."""

    after: int

    def __call__(self, _: StepResult) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("first", ["in the image", "by the DaemonSet"])
def test_a_newer_payload_of_a_bootstrap_at_a_later_boot_is_an_upgrade(
    built: FakeNode, payload: Payload, successor: Payload, first: str
) -> None:
    before = built.tree()
    if first == "in the image":
        image.bake(built.host, payload, EKS, ignore)
    boot(built)
    with built.containerd.serving():
        if first == "in the image":
            maintenance.boot(built.host, ignore)
        else:
            install(built.host, payload, EKS, ignore)
    restarts = built.containerd.restarts
    # The next boot: nodeadm-config.service writes what the user data alone say, then the user data's shell parts run.
    shutil.rmtree(built.root / "run")
    (built.root / "run").mkdir()
    built.config.write_text(TEMPLATE)
    image.bake(built.host, successor, EKS, ignore)
    boot(built)
    with built.containerd.serving():
        maintenance.boot(built.host, ignore)
        found = status(built.host, EKS)
        assert (found.payload_id, found.drift, found.handler_live) == (successor.manifest.id, (), True)
        assert {step.outcome for step in install(built.host, successor, EKS, ignore)} == {Outcome.ALREADY}
        assert built.containerd.restarts == restarts
        uninstall(built.host, EKS, ignore, purge=True)
        assert "flox" not in tomllib.loads(built.config.read_text())["plugins"][PLUGIN]["containerd"]["runtimes"]
    assert set(built.tree()) - set(before) == {"etc/containerd/config.toml", "etc/containerd/base-runtime-spec.json"}


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda root: (root / "etc/machine-id").write_text("0123\n"), "machine-id"),
        (lambda root: (root / "root/.ssh").mkdir(parents=True) or (root / "root/.ssh/authorized_keys").touch(), "left"),
        (lambda root: (root / FRAGMENT).write_text("other"), "somebody else's file"),
        (lambda root: (root / "opt/flox-node/bin/flox-runtime").unlink(), "flox-runtime"),
        (lambda root: (root / "etc/systemd/system/flox-node-boot.service").unlink(), "flox-node-boot"),
    ],
)
def test_what_is_wrong_with_an_image_is_named(
    built: FakeNode, payload: Payload, spoil: Callable[[Path], object], text: str
) -> None:
    image.bake(built.host, payload, EKS, ignore)
    spoil(built.root)
    assert any(text in problem for problem in image.judge(built.host, EKS).problems)


def test_an_image_without_us_is_no_image_of_ours(built: FakeNode) -> None:
    assert "flox-node is not installed in it" in image.judge(built.host, EKS).problems


def test_images_of_other_platforms_and_of_old_nodeadms_are_refused(built: FakeNode, payload: Payload) -> None:
    with pytest.raises(RefusedError, match="Images are made for"):
        image.bake(built.host, payload, Settings(platform="plain"), ignore)
    (built.root / "etc/eks/nodeadm.d").rmdir()
    with pytest.raises(RefusedError, match="reads no fragments"):
        image.bake(built.host, payload, EKS, ignore)


def test_a_store_on_the_nodes_own_disks_is_refused_in_an_image(built: FakeNode, payload: Payload) -> None:
    with pytest.raises(RefusedError, match="makes ready"):
        image.bake(built.host, payload, Settings(platform="eks-al2023", nix_dir="/mnt/k8s-disks/0/nix"), ignore)


def test_a_node_image_of_kind_holds_the_handler_and_adopts_it_at_its_first_start(
    tmp_path: Path, payload: Payload
) -> None:
    kind = Settings(platform="kind")
    node = FakeNode(tmp_path / "image")
    (node.root / "kind/manifests").mkdir(parents=True)
    (node.root / "kind/bin").mkdir()
    (node.root / "etc/containerd/cri-base.json").write_text("{}")
    (node.root / "etc/machine-id").write_text("")
    (node.root / "proc").mkdir()  # empty: the root lies below another, where a build may mount nothing
    before = node.config.read_bytes()
    image.bake(node.host, payload, kind, ignore)
    assert list((node.root / "proc").iterdir()) == []
    assert (node.containerd.restarts, node.systemd.reloads) == (0, 0)
    assert b"runtimes.flox" in node.config.read_bytes()
    assert image.judge(node.host, kind).problems == ()
    (node.root / "etc/machine-id").write_text("0123456789abcdef\n")
    node.containerd.read_config()
    with node.containerd.serving():
        maintenance.boot(node.host, ignore)
        assert {step.outcome for step in install(node.host, payload, kind, ignore)} == {Outcome.ALREADY}
        assert node.containerd.restarts == 0
        assert status(node.host, kind).drift == ()
        uninstall(node.host, kind, ignore, purge=True)
    assert node.config.read_bytes() == before
