"""Where the handler goes on real nodes: the file that counts for this containerd, and no other byte anywhere."""

from __future__ import annotations

from collections.abc import Callable

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bed.config import CRI_PLUGINS, node_config
from tests.node.tree import tree

ROOT = "etc/containerd/config.toml"


def _with_imports(text: str, pattern: str) -> str:
    version, rest = text.split("\n", 1)
    return f'{version}\nimports = ["{pattern}"]\n{rest}'


def test_a_root_that_imports_a_folder_gets_a_file_of_ours_there_under_the_roots_own_plugin_id(
    node_box: Callable[..., NodeBox],
) -> None:
    config = _with_imports(node_config(), "/etc/containerd/conf.d/*.toml")
    box = node_box("2.1", config=config)
    before, handlers = tree(box), box.cri.effective_config()["containerd"]
    flox.install(box)
    ours = (box.root / "etc/containerd/conf.d/50-flox-node.toml").read_text()
    assert f'[plugins."{CRI_PLUGINS[2]}".containerd.runtimes.flox]' in ours
    assert "version" not in [line.split("=")[0].strip() for line in ours.splitlines()]
    assert (box.root / ROOT).read_text() == config
    after = box.cri.effective_config()["containerd"]
    assert after["runtimes"].pop("flox")
    assert after == handlers, "every other setting is as before"
    flox.flox_node(box, "uninstall", "--purge")
    assert tree(box) == before, "the folder is gone too"


def test_on_1_x_the_table_goes_into_the_drop_in_that_replaces_the_root_and_into_the_root(
    node_box: Callable[..., NodeBox],
) -> None:
    """NVIDIA's toolkit writes a whole copy of the CRI section; on 1.x it replaces what the root says."""
    root = _with_imports(node_config(), "/etc/containerd/conf.d/*.toml")
    nvidia = node_config().replace(
        '      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]',
        """      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
        runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]""",
    )
    box = node_box("1.7", config=root)
    box.write("/etc/containerd/conf.d/99-nvidia.toml", nvidia)
    box.run(["systemctl", "restart", "containerd"])
    box.cri.wait_ready()
    before = tree(box)
    flox.install(box)
    assert {"flox", "nvidia", "runc"} <= set(box.cri.handlers())
    assert "runtimes.flox" in (box.root / "etc/containerd/conf.d/99-nvidia.toml").read_text()
    assert "runtimes.flox" in (box.root / ROOT).read_text()
    flox.flox_node(box, "uninstall", "--purge")
    assert tree(box) == before
    assert {"nvidia", "runc"} <= set(box.cri.handlers())


def test_a_node_without_a_configuration_gets_one_that_keeps_containerds_own_defaults(
    node_box: Callable[..., NodeBox],
) -> None:
    box = node_box("2.1")
    (box.root / ROOT).unlink()
    box.run(["systemctl", "restart", "containerd"])
    box.cri.wait_ready()
    before, settings = tree(box), box.cri.effective_config()
    flox.install(box)
    after = box.cri.effective_config()
    assert after["containerd"]["runtimes"].pop("flox")
    assert after == settings
    flox.flox_node(box, "uninstall", "--purge")
    assert tree(box) == before
