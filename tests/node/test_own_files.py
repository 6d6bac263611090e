"""A change that is never confirmed, where the handler lies in files of our own: they go, and their new folders too.

The slow way back of `flox-node-rollback.sh`, which edits nobody's file: a drop-in that the root imports (containerd
2.x), and a unit's drop-in that names another configuration (Flatcar).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bed.config import node_config
from tests.bed.platforms import PlatformBox
from tests.bed.pod import HOST_ROOT
from tests.conftest import FULL
from tests.node.tree import tree

DEADLINE_S = 10
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
BAD = "bad-config,kill-during-restart"
WAYS = ("timer", "power-cut", "next-command")


def _install(box: NodeBox, faults: str) -> int:
    words = [*flox.installation(), "--deadline", str(DEADLINE_S), "--host-root", HOST_ROOT]
    return flox.beside(box, sys.executable, "-m", "tests.node.faulty", faults, *words).returncode


def _come_back(box: NodeBox, way: str) -> None:
    """Let the node undo a change by itself, or the next command, which finishes it."""
    if way == "power-cut":
        box.reboot()
    elif way == "next-command":
        flox.flox_node(box, "uninstall", "--purge")
    else:
        box.run("until [ ! -e /var/lib/flox-node/armed ] && [ ! -e /var/lib/flox-node/firing ]; do sleep 0.1; done")
    box.cri.wait_ready()


def _configuration(box: NodeBox) -> dict[str, tuple[object, ...]]:
    kept = ("etc/containerd", "etc/systemd/system/containerd", "usr/share/containerd")
    return {path: found for path, found in tree(box).items() if path.startswith(kept)}


def _must_be_as_before(box: NodeBox, before: dict[str, tuple[object, ...]], handlers: dict[str, object]) -> None:
    assert _configuration(box) == before
    assert box.cri.handlers() == handlers
    flox.install(box)
    assert "flox" in box.cri.handlers()
    flox.flox_node(box, "uninstall", "--purge")
    assert _configuration(box) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("folder", [True, False] if FULL else [False], ids=lambda there: "folder" if there else "none")
def test_a_drop_in_that_was_not_confirmed_goes_with_its_folder(
    way: str, folder: bool, node_box: Callable[..., NodeBox]
) -> None:
    box = node_box("2.1", config=IMPORTS + node_config())
    if folder:
        box.run("mkdir -p /etc/containerd/conf.d")
    before, handlers = _configuration(box), box.cri.handlers()
    assert _install(box, BAD) == 137
    assert (box.root / "etc/containerd/conf.d/50-flox-node.toml").exists()
    _come_back(box, way)
    _must_be_as_before(box, before, handlers)


@pytest.mark.parametrize("way", WAYS if FULL else ["timer"])
def test_a_unit_that_named_our_configuration_names_the_vendor_s_again(
    way: str, bed: object, machines: list[object]
) -> None:
    box = PlatformBox("flatcar", "1.7")
    machines.append(box)
    box.boot()
    before, handlers = _configuration(box), box.cri.handlers()
    assert _install(box, BAD) == 137
    assert (box.root / box.outfit.durable.lstrip("/")).exists()
    _come_back(box, way)
    assert "flox-node" not in box.run("systemctl show --property=DropInPaths containerd.service").stdout
    _must_be_as_before(box, before, handlers)
