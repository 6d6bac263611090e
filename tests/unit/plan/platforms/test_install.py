"""An install on a platform: refused without a trace, settled by --platform, proven by the platform's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from flox_node.containerd.config.edit import SourceEdit
from flox_node.containerd.live.nodeadm_check import NODEADM, require_accepted
from flox_node.errors import RefusedError
from flox_node.host import Completed, Host, HostFiles
from flox_node.payload import Payload
from flox_node.plan import install
from flox_node.plan.status import status
from flox_node.platforms import all_platforms, by_name
from flox_node.settings import Settings
from tests.unit.fake_node import FakeNode

FRAGMENTS = "/etc/eks/nodeadm.d"
OURS = f"{FRAGMENTS}/50-flox-node.yaml"


@pytest.mark.parametrize("system", ["bottlerocket", "cos", "talos", "nixos"])
def test_a_refused_system_is_left_as_it_is_with_reason_and_remedy(system: str, tmp_path: Path) -> None:
    node = FakeNode(tmp_path / "node")
    (node.root / "etc/os-release").write_text(f"ID={system}\n")
    before = node.tree()
    platform = next(platform for platform in all_platforms() if f"ID={system}" in {s.pattern for s in platform.signs})
    assert platform.refusal is not None
    with node.containerd.serving(), pytest.raises(RefusedError) as caught:
        install(node.host, cast("Payload", None), Settings(), lambda _: None)
    assert (caught.value.cause, caught.value.remedy) == (platform.refusal.reason, platform.refusal.instead)
    assert node.tree() == before
    assert node.containerd.restarts == 0


def test_a_contradiction_does_not_hide_whether_the_handler_is_live(tmp_path: Path) -> None:
    node = FakeNode(tmp_path / "node")
    (node.root / "etc/os-release").write_text("ID=ubuntu\n")
    for path in ("etc/kubernetes/azure.json", "home/kubernetes/kube-env"):
        (node.root / path).mkdir(parents=True)
    node.containerd.handlers["flox"] = {"runtimeType": "io.containerd.runc.v2", "options": None}
    with node.containerd.serving():
        found = status(node.host, Settings())
        assert status(node.host, Settings(platform="aks")).platform == by_name("aks").name
    assert found.platform == ""
    assert found.handler_live


class Nodeadm:
    """A `nodeadm config check` that refuses folders with one of these files."""

    def __init__(self, root: Path, refuses: Sequence[str]) -> None:
        self._root, self._refuses = root, refuses

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        folder = self._root / argv[-1].removeprefix("file:///")
        names = [path.name for path in folder.iterdir()]
        refused = [name for name in names if name in self._refuses]
        return Completed(1, b"", f"{refused[0]} is bad\n".encode()) if refused else Completed(0, b"", b"")


def _host(root: Path, refuses: Sequence[str]) -> Host:
    for folder in ("usr/bin", "etc/eks/nodeadm.d", "run/flox-node"):
        (root / folder).mkdir(parents=True)
    (root / NODEADM.lstrip("/")).touch()
    (root / "etc/eks/nodeadm.d/40-user.yaml").touch()
    return Host(HostFiles(root), Nodeadm(root, refuses), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("refuses", [[], ["40-user.yaml"]])
def test_a_fragment_is_not_blamed_for_what_nodeadm_refuses_anyway(refuses: list[str], tmp_path: Path) -> None:
    require_accepted(_host(tmp_path, refuses), [SourceEdit(OURS, None, b"x")], FRAGMENTS)
    assert not (tmp_path / "run/flox-node/nodeadm.d").exists()


def test_a_fragment_that_nodeadm_refuses_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"50-flox-node\.yaml is bad"):
        require_accepted(_host(tmp_path, ["50-flox-node.yaml"]), [SourceEdit(OURS, None, b"x")], FRAGMENTS)
    assert not (tmp_path / OURS.lstrip("/")).exists()
