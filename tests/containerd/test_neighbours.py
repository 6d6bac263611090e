"""Others who register with containerd, before and after us, gone before and after us: nobody loses anything."""

import itertools
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import load
from flox_node.containerd.config.placement import place, withdraw
from flox_node.host import HostFiles
from tests.bed import releases
from tests.conftest import FULL
from tests.containerd.dumps import RELEASES, Dump, dump, version

OURS = Handler()


@dataclass(frozen=True)
class Node:
    """A folder with a root file that imports conf.d, and the containerd that reads it."""

    release: str
    folder: Path
    schema: int

    @property
    def root(self) -> Path:
        return self.folder / "config.toml"

    @property
    def plugin(self) -> str:
        return schema.CRI_GRPC if self.schema == 2 else schema.CRI_RUNTIME

    def dump(self) -> Dump:
        return dump(self.release, self.root)

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*.toml"))}

    def install(self) -> None:
        reader = HostFiles("/")
        self._write(place(load(str(self.root), reader, version(self.release)), reader, OURS))

    def uninstall(self) -> None:
        reader = HostFiles("/")
        self._write(withdraw(load(str(self.root), reader, version(self.release)), reader, OURS))

    def _write(self, edits: Sequence[Edit]) -> None:
        for edit in edits:
            if edit.after is None:
                Path(edit.path).unlink()
            else:
                Path(edit.path).write_bytes(edit.after)


def table(node: Node, name: str, kind: str, **options: object) -> str:
    path = ("plugins", node.plugin, "containerd", "runtimes", name)
    return block.tables_text({path: {"runtime_type": kind, "options": options}}, "\n")


def appended(text: Callable[[Node], str]) -> tuple[Callable[[Node], None], Callable[[Node], None]]:
    """A neighbour that appends to the root file and cuts exactly its own text out again."""

    def add(node: Node) -> None:
        node.root.write_text(node.root.read_text() + text(node))

    def remove(node: Node) -> None:
        content = node.root.read_text()
        assert text(node) in content, "our edit went through their lines"
        node.root.write_text(content.replace(text(node), ""))

    return add, remove


def drop_in(name: str, content: Callable[[Node], str]) -> tuple[Callable[[Node], None], Callable[[Node], None]]:
    def add(node: Node) -> None:
        (node.folder / "conf.d" / name).write_text(content(node))

    def remove(node: Node) -> None:
        (node.folder / "conf.d" / name).unlink()

    return add, remove


def nvidia_drop_in(node: Node) -> str:
    """As NVIDIA's toolkit: the whole CRI table of what it found, plus its handler as the default, re-serialised."""
    content = tomllib.loads(node.root.read_text())
    cri = content.get("plugins", {}).get(node.plugin, {})
    section = cri.setdefault("containerd", {})
    runtimes = section.setdefault("runtimes", {"runc": {"runtime_type": "io.containerd.runc.v2"}})
    options = {**runtimes.get("runc", {}).get("options", {}), "BinaryName": "/usr/bin/nvidia-container-runtime"}
    runtimes["nvidia"] = {"runtime_type": "io.containerd.runc.v2", "options": options}
    section["default_runtime_name"] = "nvidia"
    head = f"version = {node.schema}\n" if "version" in content else ""
    return head + block.tables_text({("plugins", node.plugin): cri}, "\n")


def proxy(name: str, socket: str) -> Callable[[Node], str]:
    def text(node: Node) -> str:
        return f'[proxy_plugins.{name}]\n  type = "snapshot"\n  address = "{socket}"\n'

    return text


def snapshotter(name: str, socket: str) -> tuple[Callable[[Node], None], Callable[[Node], None]]:
    """As nydus' and stargz' scripts: the proxy, and the CRI told to use it, in the table that is there or a new one."""

    def change(node: Node) -> tuple[str, str]:
        line = f'  snapshotter = "{name}"\n'
        header = f'[plugins."{node.plugin}".containerd]\n'
        if node.schema == 3:
            return "", f'[plugins."{schema.CRI_IMAGES}"]\n{line}'
        return (line, "") if header in node.root.read_text() else ("", header + line)

    def add(node: Node) -> None:
        inside, behind = change(node)
        header = f'[plugins."{node.plugin}".containerd]\n'
        content = node.root.read_text().replace(header, header + inside) if inside else node.root.read_text()
        node.root.write_text(content + behind + proxy(name, socket)(node))

    def remove(node: Node) -> None:
        line = f'  snapshotter = "{name}"\n'
        table = f'{node.plugin}".containerd' if node.schema == 2 else f'{schema.CRI_IMAGES}"'
        own = proxy(name, socket)(node)
        content = node.root.read_text().replace(f'[plugins."{table}]\n{line}{own}', "")
        node.root.write_text(content.replace(line, "").replace(own, ""))

    return add, remove


NEIGHBOURS: dict[str, tuple[Callable[[Node], None], Callable[[Node], None]]] = {
    "nvidia": drop_in("99-nvidia.toml", nvidia_drop_in),
    "kata": appended(
        lambda node: (
            table(node, "kata-qemu", "io.containerd.kata-qemu.v2", ConfigPath="/opt/kata/qemu.toml")
            + table(node, "kata-clh", "io.containerd.kata-clh.v2", ConfigPath="/opt/kata/clh.toml")
        )
    ),
    "gvisor": appended(
        lambda node: "\n" + table(node, "runsc", "io.containerd.runsc.v1", TypeUrl="io.containerd.runsc.v1.options")
    ),
    "nydus": snapshotter("nydus", "/run/containerd-nydus/containerd-nydus-grpc.sock"),
    "stargz": snapshotter("stargz", "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"),
    "soci": appended(proxy("soci", "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock")),
}

ROOTS = {
    "kubeadm": """# written by the administrator
version = {schema}
imports = ["{folder}/conf.d/*.toml"]
[plugins."{plugin}".containerd]
  default_runtime_name = "runc"
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{plugin}".containerd.runtimes.runc.options]
    SystemdCgroup = true
""",
    "no runtimes": """version = {schema}
imports = ["{folder}/conf.d/*.toml"]
[plugins."{plugin}"]
  enable_selinux = false
""",
}


def nodes() -> list[Any]:
    cases = itertools.product(RELEASES if FULL else releases.DEFAULT, (2, 3), ROOTS)
    return [
        pytest.param(release, number, root, id=f"{release}-schema{number}-{root.replace(' ', '-')}")
        for release, number, root in cases
        if number == 2 or not release.startswith("1.")
    ]


def make(tmp_path: Path, release: str, number: int, root: str) -> Node:
    folder = tmp_path / f"{release}-{number}"
    (folder / "conf.d").mkdir(parents=True)
    node = Node(release, folder, number)
    node.root.write_text(ROOTS[root].format(schema=number, folder=folder, plugin=node.plugin))
    return node


def without_us(view: Dump) -> dict[str, object]:
    handlers = {name: values for name, values in view.handlers.items() if name != "flox"}
    rest = {key: value for key, value in view.but("flox").items() if key != "plugins"}
    plugins = view.data["plugins"]
    old = schema.table(plugins, schema.CRI_GRPC, "containerd").get("snapshotter")
    images = schema.table(plugins, schema.CRI_IMAGES).get("snapshotter") if not view.release.startswith("1.") else old
    return {"handlers": handlers, "default": view.default_runtime, "snapshotter": images, **rest}


def is_live(view: Dump) -> bool:
    assert not view.error, view.error
    assert not view.cri_is_dead
    ours = view.handlers.get("flox")
    return ours is not None and ours["options"]["BinaryName"] == OURS.binary_name


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize(("release", "number", "root"), nodes())
def test_we_come_second_and_leave_first(tmp_path: Path, release: str, number: int, root: str, neighbour: str) -> None:
    node = make(tmp_path, release, number, root)
    theirs, their_removal = NEIGHBOURS[neighbour]
    start = node.files()
    if would_break_without_us(node, neighbour):
        return
    theirs(node)
    before, files = node.dump(), node.files()

    node.install()
    assert is_live(node.dump())
    assert without_us(node.dump()) == without_us(before)
    node.uninstall()
    assert node.files() == files
    their_removal(node)
    assert node.files() == start


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize(("release", "number", "root"), nodes())
def test_we_come_second_and_leave_last(tmp_path: Path, release: str, number: int, root: str, neighbour: str) -> None:
    node = make(tmp_path, release, number, root)
    theirs, their_removal = NEIGHBOURS[neighbour]
    start, alone = node.files(), without_us(node.dump())
    if would_break_without_us(node, neighbour):
        return
    theirs(node)
    node.install()
    their_removal(node)

    assert is_live(node.dump())
    assert without_us(node.dump()) == alone
    node.uninstall()
    assert node.files() == start


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize(("release", "number", "root"), nodes())
def test_we_come_first_and_leave_last(tmp_path: Path, release: str, number: int, root: str, neighbour: str) -> None:
    node = make(tmp_path, release, number, root)
    theirs, their_removal = NEIGHBOURS[neighbour]
    start = node.files()
    node.install()
    theirs(node)
    if neighbour == "nvidia" and release.startswith("1."):
        node.install()  # their drop-in shadows the root from now on; this is what the drift watch runs
    assert is_live(node.dump())
    assert_they_are_there(node, neighbour)
    their_removal(node)
    assert is_live(node.dump())
    node.uninstall()
    assert node.files() == start


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize(("release", "number", "root"), nodes())
def test_we_come_first_and_leave_first(tmp_path: Path, release: str, number: int, root: str, neighbour: str) -> None:
    node = make(tmp_path, release, number, root)
    never_ours = make(tmp_path / "never", release, number, root)
    theirs, their_removal = NEIGHBOURS[neighbour]
    theirs(never_ours)
    node.install()
    theirs(node)
    both = node.dump()

    node.uninstall()
    after = node.dump()
    assert not after.error
    assert not after.cri_is_dead
    assert "flox" not in after.handlers
    assert after.handlers == {name: values for name, values in both.handlers.items() if name != "flox"}
    if not never_ours.dump().cri_is_dead:
        # What is in force is what they would have without us: 2.0 to 2.2 honour a snapshotter of schema 2 only where
        # some file defines a runtime, which may have been ours.
        assert without_us(after) == without_us(never_ours.dump())
    their_removal(node)
    assert not node.dump().cri_is_dead


def would_break_without_us(node: Node, neighbour: str) -> bool:
    """Kata and gVisor append their table only; where 1.x has no runc of its own in the file, that kills its CRI."""
    theirs, their_removal = NEIGHBOURS[neighbour]
    theirs(node)
    dead = node.dump().cri_is_dead
    their_removal(node)
    return dead


def assert_they_are_there(node: Node, neighbour: str) -> None:
    view = node.dump()
    handlers = {"nvidia": {"nvidia"}, "kata": {"kata-qemu", "kata-clh"}, "gvisor": {"runsc"}}.get(neighbour, set())
    assert handlers | {"runc"} <= view.handlers.keys()
    if not handlers:
        assert neighbour in view.data["proxy_plugins"]
