"""The lives of `tests/unit/plan/test_lives.py` on real nodes, with the commands of the product and NVIDIA's own tool.

Two boxes, one with us and one without, are done the same to. What either is their containerds say: their dumps, their
CRIs, and in the end every byte of the nodes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError
from tests.bed import flox, nvidia, payload, releases
from tests.bed.box import NodeBox
from tests.bed.cri import CriError
from tests.bed.pod import HOST_ROOT
from tests.conftest import FULL
from tests.containerd.dumps import Dump, version
from tests.containerd.test_neighbours import without_us
from tests.node.tree import tree
from tests.unit.plan.test_lives import OTHER, TOOLKIT, Life, Told, run_lives

RELEASES = ("1.7", "2.1", "2.4")
LIVES = 3
_OWN = ("etc/machine-id",)  # what two nodes never have in common


class NodeLife(Life):
    releases: tuple[str, ...] = RELEASES
    boxes: tuple[NodeBox, NodeBox]

    def __init__(self) -> None:
        super().__init__()
        self.next = payload.folder()

    def _dump(self, box: NodeBox) -> Dump:
        done = box.run("containerd config dump", check=False)
        return Dump(done.stderr if done.returncode else "", tomllib.loads(done.stdout), self.release)

    @property
    def roots(self) -> tuple[Path, Path]:
        ours, control = self.boxes
        return ours.root, control.root

    def _power_on(self, release: str, config: str) -> None:
        self.boxes = (NodeBox(release, config=config), NodeBox(release, config=config))
        for box in self.boxes:
            self.stack.callback(box.close)
            nvidia.put_ctk(box)
            box.boot()

    def _configure(self, source: Literal["command", "file"]) -> None:
        if not self._others_are_well():
            return  # it asks a containerd that does not start
        for box in self.boxes:
            nvidia.configure(box, source, default=True)
        self._restart()

    def _ask_the_daemons(self) -> None:
        ours, control = (self._dump(box) for box in self.boxes)
        assert (ours.error, control.error) == ("", "")
        assert without_us(ours) == without_us(control)
        served, alone = ({**box.cri.handlers()} for box in self.boxes)
        served.pop("flox", None)
        assert served == alone

    def _version(self) -> ContainerdVersion:
        return version(self.release)

    def _become(self, release: str) -> None:
        """Another release of containerd, as a package manager puts it there."""
        for box in self.boxes:
            for program in releases.PROGRAMS:
                new = box.root / f"usr/bin/{program}.new"
                shutil.copy(releases.program(release, program), new)
                new.rename(box.root / f"usr/bin/{program}")

    def _boot(self) -> None:
        self.pending = False
        for box in self.boxes:
            box.reboot()
        if self._others_are_well():
            self._our_boot()

    def _our_boot(self) -> None:
        self.boxes[0].run("systemctl start --wait flox-node-boot.service", check=False, timeout=300)

    def _restart(self) -> None:
        self.pending = False
        well = self._others_are_well()
        for box in self.boxes:
            box.run("systemctl restart containerd", check=False, timeout=150)
        control = self.boxes[1]
        if well:
            control.cri.wait_ready()
            with contextlib.suppress(TimeoutError, CriError):  # whether ours is well is what the invariants ask
                self.boxes[0].cri.wait_ready()
        else:
            assert not self._answers(control), "the model says that this containerd has no CRI"

    def _answers(self, box: NodeBox) -> bool:
        try:
            box.cri.version()
        except CriError:
            return False
        return True

    def _starts(self) -> object:
        return self.boxes[0].main_pid("containerd.service")

    def _served(self) -> Mapping[str, Any]:
        return self.boxes[0].cri.handlers()

    def _carry_out(self) -> None:
        self._product("install", "--payload", str(self.next), "--restarts-per-hour", "1000")

    def _next_release(self) -> None:
        self.next = payload.other() if self.next == payload.folder() else payload.folder()

    def _take_out(self) -> None:
        self._product("uninstall", "--purge")

    def _told(self) -> Told:
        said = json.loads(flox.flox_node(self.boxes[0], "status", "--json", check=False).stdout)
        well = said["installed"] and not (said["drift"] or said["interrupted"] or said["problem"])
        return Told(bool(said["drift"]), said["handler_live"], well)

    def _is_killed(self, entry: int, *, going: bool) -> bool:
        words = ("uninstall", "--purge") if going else ("install", "--payload", str(self.next))
        command = (sys.executable, "-m", "tests.node.killed", str(entry), *words, "--host-root", HOST_ROOT)
        done = flox.beside(self.boxes[0], *command)
        if done.returncode == 3:
            return False
        assert done.returncode in (0, 128 + signal.SIGKILL), done.stdout + done.stderr
        if done.returncode == 0:
            self.installed = not going
        return done.returncode != 0

    def _product(self, *words: str) -> None:
        done = flox.flox_node(self.boxes[0], *words, check=False)
        if done.returncode == 3:
            raise RefusedError(done.stderr)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}\n{self.boxes[0].logs()}"

    def _tree(self, root: Path) -> Mapping[str, object]:
        box = self.boxes[self.roots.index(root)]
        return {path: identity for path, identity in tree(box).items() if path not in _OWN}


Act = Callable[[NodeLife], object]
ACTS: dict[str, tuple[Act, ...]] = {
    "NVIDIA's toolkit copies us, is corrected and goes": (
        lambda life: life.the_toolkit_copies_what_is_in_force(),
        lambda life: life.the_toolkit_follows_the_root(),
        lambda life: life.a_neighbour_goes(TOOLKIT),
    ),
    "a tool changes what our table inherits": (
        lambda life: life.the_root_is_written_anew(2, imports=True, systemd=False, restart=True),
        lambda life: life.the_root_is_written_anew(2, imports=True, systemd=True, restart=True),
    ),
    "the root changes its schema, and its imports": (
        lambda life: life.the_root_is_written_anew(3, imports=True, systemd=True, restart=True),
        lambda life: life.a_neighbour_appends_to_the_root(),
        lambda life: life.the_root_is_written_anew(2, imports=False, systemd=False, restart=True),
        lambda life: life.the_root_is_written_anew(2, imports=True, systemd=True, restart=True),
    ),
    "a neighbour with the schema of its own": (
        lambda life: life.a_neighbour_adds_its_drop_in(3, versioned=True),
        lambda life: life.a_neighbour_goes(OTHER),
    ),
    "an edit that nobody restarts for": (
        lambda life: life.the_root_is_written_anew(2, imports=True, systemd=False, restart=False),
        lambda life: life.reboot(),
    ),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("story", ACTS if FULL else list(ACTS)[:1])
@pytest.mark.parametrize("release", RELEASES if FULL else RELEASES[1:2])
def test_a_whole_life_among_others(release: str, story: str, bed: object) -> None:
    """Installed; what others do, each time repaired; reboot, upgrade, another containerd and back; to the byte."""
    life = NodeLife()
    other = RELEASES[RELEASES.index(release) - 1]
    repaired = [step for act in ACTS[story] for step in (act, NodeLife.we_install)]
    later: tuple[Act, ...] = (
        NodeLife.reboot,
        NodeLife.we_upgrade,
        lambda life: life.another_containerd_is_installed(other),
        lambda life: life.another_containerd_is_installed(release),
    )
    try:
        life.begin(release, number=2, imports=True, registered=True)
        for act in [*repaired, *later] if FULL else repaired[:1]:
            act(life)
            life.it_is_what_it_would_be_without_us()
            life.status_tells_the_truth()
    finally:
        life.teardown()


@pytest.mark.skipif(not FULL, reason="did NOT run: sampled lives on real nodes, which `make test-full` has")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("release", RELEASES)
def test_sampled_lives(release: str, bed: object) -> None:
    """As random as they are on the fake node, each beginning with this release."""

    class Beginning(NodeLife):
        releases = (release, *RELEASES)

    run_lives(Beginning, LIVES, steps=6)
