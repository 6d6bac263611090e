"""Nodes dressed as platforms: installed, restarted, rebooted, upgraded, uninstalled, beside what others registered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.bed import flox, payload, releases
from tests.bed.platforms import KIND_LITERALS, NEIGHBOURS, OUTFITS, RELEASES, PlatformBox
from tests.conftest import FULL
from tests.node.tree import tree

SHIM = "/opt/flox-node/bin/flox-runtime"
NAMES = {"k3s-agent": "k3s", "k3s-drop-ins": "k3s", "rke2-agent": "rke2"}

ONE_OF_EACH = (
    ("plain", "2.1", "nvidia"),
    ("eks-al2023", "2.1", "kata"),
    ("eks-al2", "1.7", "alone"),
    ("k3s", "2.1", "alone"),
    ("k3s-drop-ins", "2.1", "kata"),
    ("rke2-agent", "1.7", "kata"),
    ("k0s", "1.7", "nvidia"),
    ("microk8s", "2.1", "alone"),
    ("kind", "2.1", "alone"),
    ("aks", "2.1", "kata"),
    ("gke-ubuntu", "1.7", "alone"),
    ("flatcar", "1.7", "alone"),
)


def _cases() -> Iterator[tuple[str, str, str]]:
    if not FULL:
        yield from ONE_OF_EACH
        return
    for platform in OUTFITS:
        for release in RELEASES.get(platform, releases.DEFAULT):
            for neighbour in NEIGHBOURS:
                yield platform, release, neighbour


@pytest.mark.parametrize(("platform", "release", "neighbour"), tuple(_cases()))
def test_the_handler_outlives_restart_reboot_and_upgrade_and_leaves_no_trace(
    platform: str, release: str, neighbour: str, bed: object, machines: list[object]
) -> None:
    box = PlatformBox(platform, release, neighbour)
    machines.append(box)
    box.boot()
    before, former = tree(box), box.cri.handlers()
    sandbox = box.cri.run_sandbox("runc", cgroup_parent=box.outfit.cgroup_parent)
    container = box.cri.run_container(sandbox, ["sleep", "3600"])
    pid = box.cri.container_pid(container)

    flox.install(box)
    _assert_live(box, former)
    assert (box.root / box.outfit.durable.lstrip("/")).exists()
    told = json.loads(flox.flox_node(box, "status", "--json").stdout)
    assert told["platform"] == NAMES.get(platform, platform)

    box.run(["systemctl", "restart", box.outfit.unit])
    box.cri.wait_ready()
    _assert_live(box, former)
    assert box.cri.container_pid(container) == pid

    box.reboot()
    if box.outfit.forgets:
        assert "flox" not in box.cri.handlers()
        flox.install(box)
    _assert_live(box, former)
    assert flox.flox_node(box, "status").returncode == 0
    assert _install(box, payload.folder())["changed"] is False

    daemon = _daemon(box)
    assert _install(box, payload.other())["changed"] is True
    assert _daemon(box) == daemon, "an upgrade of the payload restarts nothing"
    _assert_live(box, former)

    flox.flox_node(box, "uninstall", "--purge")
    assert box.cri.handlers() == former
    assert _without(tree(box), box) == _without(before, box)
    box.reboot()
    assert box.cri.handlers() == former
    assert tree(box) == before


@pytest.fixture(params=("2.1", "2.3") if FULL else ("2.3",))
def kinds_release(request: pytest.FixtureRequest, bed: object) -> str:
    """A release that kind writes its literals for. It may have to be built, which is no part of a test's time."""
    releases.layer(request.param)
    return str(request.param)


def test_the_literal_edits_of_kind_still_find_their_text(kinds_release: str, machines: list[object]) -> None:
    box = PlatformBox("kind", kinds_release)
    machines.append(box)
    box.boot()
    config = box.root / "etc/containerd/config.toml"
    before = config.read_text()
    found = {literal: before.count(literal) for literal in KIND_LITERALS}
    flox.install(box)
    assert {literal: config.read_text().count(literal) for literal in KIND_LITERALS} == found
    assert set(found.values()) == {1}
    box.run(["sed", "-i", 's/snapshotter = "overlayfs"/snapshotter = "native"/', "/etc/containerd/config.toml"])
    box.run("systemctl restart containerd")
    box.cri.wait_ready()
    assert "snapshotter = 'native'" in box.run("containerd config dump").stdout
    assert "flox" in box.cri.handlers()
    flox.flox_node(box, "uninstall", "--purge")
    assert config.read_text() == before.replace('snapshotter = "overlayfs"', 'snapshotter = "native"')


def _assert_live(box: PlatformBox, former: dict[str, object]) -> None:
    handlers = box.cri.handlers()
    assert handlers["flox"]["options"]["BinaryName"] == SHIM
    assert {name: table for name, table in handlers.items() if name != "flox"} == former


def _install(box: PlatformBox, folder: object) -> dict[str, object]:
    result: dict[str, object] = json.loads(flox.flox_node(box, "install", "--payload", str(folder), "--json").stdout)
    return result


def _daemon(box: PlatformBox) -> int:
    return box.main_pid(box.outfit.unit)


def _without(found: dict[str, tuple[object, ...]], box: PlatformBox) -> dict[str, tuple[object, ...]]:
    """Without what only the next boot renders again."""
    hidden = {"etc/containerd/config.toml"} if box.outfit.rewritten_at_boot else set()
    return {path: identity for path, identity in found.items() if path not in hidden}
