"""A configuration that changes under our registration: a node is what it would be without us, plus our handler.

Every story is told twice, on a node with us and on one without, and the real containerd says after each chapter what
either is. A neighbour that copies what is in force, as NVIDIA's toolkit does, copies our handler along.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.placement import DROP_IN
from tests.bed import releases
from tests.conftest import FULL
from tests.containerd.dumps import dump
from tests.containerd.test_neighbours import Node, is_live, nvidia_drop_in, without_us

RELEASES = ("1.6", *releases.DEFAULT, *(releases.NEWER if FULL else ()))
RELEASES_2 = tuple(release for release in RELEASES if release >= "2")
ROOT = """# written by the administrator
version = {schema}
imports = ["{folder}/conf.d/*.toml"]
[plugins."{plugin}"]
  max_container_log_line_size = 65536
[plugins."{plugin}".containerd]
  default_runtime_name = "runc"
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{plugin}".containerd.runtimes.runc.options]
    SystemdCgroup = {systemd}
"""
Act = Callable[[Node], None]


def root(number: int, *, systemd: str = "true", imports: bool = True) -> Act:
    """The administrator writes the root anew."""
    plugin = schema.CRI_GRPC if number == 2 else schema.CRI_RUNTIME

    def act(node: Node) -> None:
        text = ROOT.format(schema=number, folder=node.folder, plugin=plugin, systemd=systemd)
        node.root.write_text("".join(line for line in text.splitlines(True) if imports or "imports" not in line))

    return act


def toolkit(source: str) -> Act:
    """NVIDIA's toolkit writes its drop-in, from what is in force (`command`) or from the root (`file`)."""

    def act(node: Node) -> None:
        path = node.folder / "conf.d/99-nvidia.toml"
        if source == "file":
            number = 3 if "version = 3" in node.root.read_text() else 2
            path.write_text(nvidia_drop_in(Node(node.release, node.folder, number)))
            return
        path.unlink(missing_ok=True)
        view = dump(node.release, node.root)
        cri = view.data["plugins"][view.plugin]
        cri["containerd"]["runtimes"]["nvidia"] = {
            "runtime_type": "io.containerd.runc.v2",
            "options": {"BinaryName": "/usr/bin/nvidia-container-runtime", "SystemdCgroup": True},
        }
        head = f"version = {view.data['version']}\n"
        path.write_text(head + block.tables_text({("plugins", view.plugin): cri}, "\n"))

    return act


def toolkit_goes(node: Node) -> None:
    (node.folder / "conf.d/99-nvidia.toml").unlink()


def kata(node: Node) -> None:
    """A neighbour that appends its table to the root."""
    path = ("plugins", schema.CRI_RUNTIME if "version = 3" in node.root.read_text() else schema.CRI_GRPC)
    table = {"runtime_type": "io.containerd.kata.v2"}
    text = block.tables_text({(*path, "containerd", "runtimes", "kata"): table}, "\n")
    node.root.write_text(node.root.read_text() + text)


def rewritten(*words: str) -> Act:
    """Somebody has containerd write its configuration, and puts that into the root: `config default`, `migrate`, ..."""

    def act(node: Node) -> None:
        program = releases.program(node.release, "containerd")
        command = [str(program), "--config", str(node.root), "config", *words]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        node.root.write_text(text.replace("/etc/containerd/conf.d", f"{node.folder}/conf.d"))

    return act


class Story:
    """The same acts on a node with us and on one without."""

    def __init__(self, folder: Path, release: str, *acts: Act) -> None:
        self.ours, self.control = (Node(release, folder / name, 2) for name in ("ours", "control"))
        for node in (self.ours, self.control):
            (node.folder / "conf.d").mkdir(parents=True)
        for act in acts:
            self.both(act)

    def both(self, act: Act) -> None:
        for node in (self.ours, self.control):
            act(node)
        self.same()

    def same(self) -> None:
        """Everybody else's settings are what they are without us."""
        ours, control = self.ours.dump(), self.control.dump()
        assert (ours.error, ours.cri_is_dead) == (control.error, control.cri_is_dead)
        assert without_us(ours) == without_us(control)

    def install(self) -> None:
        self.ours.install()
        assert is_live(self.ours.dump())
        self.same()
        files = self.ours.files()
        self.ours.install()
        assert self.ours.files() == files, "a second run has nothing to do"

    def uninstall(self) -> None:
        self.ours.uninstall()
        assert "flox" not in self.ours.dump().handlers
        for path in self.ours.folder.rglob("*"):
            assert path.is_dir() or b"flox-runtime" not in path.read_bytes(), path
        self.same()


@pytest.mark.parametrize("release", RELEASES_2)
@pytest.mark.parametrize("then", ["file", "gone"])
def test_a_toolkit_with_another_schema_than_the_root_is_corrected_or_goes(
    tmp_path: Path, release: str, then: str
) -> None:
    """https://github.com/nutanix-cloud-native/cluster-api-runtime-extensions-nutanix/pull/1613"""
    story = Story(tmp_path, release, root(2), toolkit("command"))
    story.install()
    story.both(toolkit("file") if then == "file" else toolkit_goes)
    story.install()
    story.uninstall()


@pytest.mark.parametrize("release", RELEASES_2)
def test_a_toolkit_that_comes_after_us_copies_our_handler_and_that_is_ours(tmp_path: Path, release: str) -> None:
    """https://github.com/NVIDIA/nvidia-container-toolkit/issues/1260"""
    for number in (2, 3):
        story = Story(tmp_path / str(number), release, root(number))
        story.install()
        story.both(toolkit("command"))
        assert "flox-runtime" in (story.ours.folder / "conf.d/99-nvidia.toml").read_text()
        before = story.ours.files()
        story.install()
        assert story.ours.files() == before, "the copy means the same"
        story.uninstall()
        # A copy that says something else now would win over ours.
        story.install()
        story.both(toolkit("command"))
        story.both(root(number, systemd="false"))
        story.install()
        story.uninstall()


@pytest.mark.parametrize("release", [release for release in RELEASES if release < "2"])
def test_a_copy_of_the_toolkit_on_1x_is_ours_in_place(tmp_path: Path, release: str) -> None:
    story = Story(tmp_path, release, root(2))
    story.install()
    story.both(toolkit("command"))
    assert is_live(story.ours.dump())
    before = story.ours.files()
    story.install()
    assert story.ours.files() == before, "the copy means the same"
    story.uninstall()


@pytest.mark.parametrize("release", RELEASES_2)
@pytest.mark.parametrize("numbers", [(2, 3), (3, 2)])
@pytest.mark.parametrize("imports", [True, False])
def test_a_root_written_anew_in_another_schema_is_followed(
    tmp_path: Path, release: str, numbers: tuple[int, int], imports: bool
) -> None:
    story = Story(tmp_path, release, root(numbers[0], systemd="false"))
    story.install()
    story.both(root(numbers[1], imports=imports))
    story.install()
    story.both(kata)
    story.install()
    story.uninstall()
    assert not list(tmp_path.rglob(DROP_IN))


@pytest.mark.parametrize("number", [2, 3])
def test_another_containerd_is_followed(tmp_path: Path, number: int) -> None:
    """https://github.com/sassoftware/viya4-iac-k8s/issues/187"""
    story = Story(tmp_path, "2.1", root(number))
    story.install()
    for node in (story.ours, story.control):
        root(2)(node)
    for release in ("1.7", "2.1"):
        story.ours = Node(release, story.ours.folder, 2)
        story.control = Node(release, story.control.folder, 2)
        story.install()
    story.uninstall()


@pytest.mark.parametrize("release", RELEASES)
def test_what_we_leave_is_what_was_there(tmp_path: Path, release: str) -> None:
    for number in (2, 3) if release >= "2" else (2,):
        story = Story(tmp_path / str(number), release, root(number), toolkit("command"))
        before = story.ours.files()
        story.install()
        story.uninstall()
        assert story.ours.files() == before
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.parametrize("imports", [True, False])
@pytest.mark.parametrize(
    ("release", "words"),
    [
        *((release, word) for release in RELEASES for word in ("default", "dump")),
        *((release, "migrate") for release in RELEASES_2),
    ],
)
def test_a_root_that_containerd_wrote_is_followed_and_left_as_it_would_be_without_us(
    tmp_path: Path, release: str, words: str, imports: bool
) -> None:
    """A dump and a migrated configuration have our handler in them, with every default."""
    story = Story(tmp_path, release, root(2, imports=imports))
    story.install()
    story.both(rewritten(words))
    story.install()
    story.uninstall()
    ours, control = (
        node.root.read_bytes().replace(f"{node.folder}/".encode(), b"/") for node in (story.ours, story.control)
    )
    assert ours == control
