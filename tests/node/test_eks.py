"""An image of EKS nodes, made in a chroot by the bootstrap; the nodes that boot from it, and the DaemonSet there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.bed import eks, flox, payload
from tests.bed.platforms import PlatformBox
from tests.conftest import FULL
from tests.doubles.server import serving
from tests.node.tree import tree

SHIM = "/opt/flox-node/bin/flox-runtime"
BOOTS = 4 if FULL else 2
# What containerd is configured with whenever the kubelet is about to start.
LOOK = "[Service]\nExecStartPre=/bin/sh -c 'cp /etc/containerd/config.toml /run/at-kubelets-start.toml'\n"


@pytest.fixture(params=("1.7", "2.1", "2.4") if FULL else ("2.1",))
def baked(request: pytest.FixtureRequest, machines: list[object], bed: object) -> PlatformBox:
    box = PlatformBox("eks-al2023", request.param)
    machines.append(box)
    box.write("etc/machine-id", "")
    box.write("etc/systemd/system/kubelet.service.d/50-look.conf", LOOK)
    return box


def test_nodes_of_an_image_are_flox_nodes_from_every_boot_on_and_the_daemonset_adopts_them(
    baked: PlatformBox, machines: list[object]
) -> None:
    data = eks.archive().read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    with serving(lambda request: request.send_file(data)) as server:
        done = eks.bake(baked, f"{server.url}/p", sha256)
        assert done.returncode == 0, done.stderr
        again = eks.bake(baked, f"{server.url}/p", sha256)
        assert "has this payload already" in again.stderr
        assert len(server.seen) == 1
    judged = eks.in_image(baked, "sh", "/tmp/check.sh")
    assert judged.returncode == 0, judged.stdout + judged.stderr

    plain = PlatformBox("eks-al2023", baked.containerd)
    machines.append(plain)
    plain.write("etc/systemd/system/kubelet.service.d/50-look.conf", LOOK)
    plain.boot()
    before, former = tree(plain), plain.cri.handlers()
    plain.close()

    for _ in range(BOOTS):
        baked.boot()
        _assert_live(baked, former)
        assert "runtimes.flox" in baked.run("cat /run/at-kubelets-start.toml").stdout
        assert flox.flox_node(baked, "status").returncode == 0
        baked.cut_power()

    baked.boot()
    daemon = baked.main_pid("containerd.service")
    assert _install(baked, payload.folder())["changed"] is False, "the DaemonSet adopts what it finds"
    assert _install(baked, payload.other())["changed"] is True
    assert baked.main_pid("containerd.service") == daemon, "and upgrades it without a restart"
    baked.reboot()
    _assert_live(baked, former)
    assert flox.flox_node(baked, "status").returncode == 0
    assert _install(baked, payload.other())["changed"] is False

    flox.flox_node(baked, "uninstall", "--purge")
    assert baked.cri.handlers() == former
    baked.reboot()
    assert baked.cri.handlers() == former
    left = tree(baked)
    ids = {"etc/machine-id"}
    assert {path: left[path] for path in left if path not in ids} == {p: before[p] for p in before if p not in ids}


def _assert_live(box: PlatformBox, former: dict[str, object]) -> None:
    handlers = box.cri.handlers()
    assert handlers["flox"]["options"]["BinaryName"] == SHIM
    assert {name: table for name, table in handlers.items() if name != "flox"} == former


def _install(box: PlatformBox, folder: Path) -> dict[str, object]:
    result: dict[str, object] = json.loads(flox.flox_node(box, "install", "--payload", str(folder), "--json").stdout)
    return result


def stock(machines: list[object], sha256: str) -> PlatformBox:
    """A node of the stock image whose user data hold the bootstrap."""
    box = PlatformBox("eks-al2023", "2.1")
    machines.append(box)
    eks.put_user_data(box, sha256)
    eks.serve_payload(box)
    return box


def test_a_stock_image_becomes_a_flox_node_within_its_first_boot(machines: list[object], bed: object) -> None:
    box = stock(machines, hashlib.sha256(eks.archive().read_bytes()).hexdigest())
    for _ in range(2):
        box.boot()
        assert box.cri.handlers()["flox"]["options"]["BinaryName"] == SHIM
        assert flox.flox_node(box, "status").returncode == 0
        assert "docker.io/flox/empty:1.0.0" in box.cri.images(), "the unit of the boot ran, in the first boot too"
        box.cut_power()


def test_a_bootstrap_that_fails_leaves_a_node_that_joins(machines: list[object], bed: object) -> None:
    box = stock(machines, "0" * 64)
    box.boot()
    assert "flox" not in box.cri.handlers()
    assert box.run("systemctl is-active kubelet").stdout.strip() == "active"
    assert "nothing was unpacked" in box.run("journalctl --no-pager --unit=user-data").stdout
    assert not (box.root / "opt/flox-node").exists()
    assert not (box.root / "etc/eks/nodeadm.d/50-flox-node.yaml").exists()
