"""Random lives of a registered node: whatever comes, it is what it would be without us, plus our handler.

Every act of others happens to two nodes, one with us and one without. After each step the one with us must load the
CRI where the other does, everybody else's settings must be the other's, and `status` must tell the truth. In the end an
uninstall leaves what the other one has, to the byte.

The registration is the real one, journalled and restarted as in a real run; what else an install places is left out.
`tests/node/test_lives.py` leads the same lives on real nodes: it replaces what is below "What a node is".
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flox_node.containerd.config import block, editor, schema
from flox_node.containerd.config.effective import Effective, load
from flox_node.containerd.config.runtimes import tables_in_force
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live import cri as live_cri
from flox_node.errors import FloxNodeError, RefusedError
from flox_node.host import HostFiles
from flox_node.payload import Payload
from flox_node.plan import install, planner, uninstall
from flox_node.plan.maintenance import boot
from flox_node.plan.status import status
from flox_node.settings import Settings
from flox_node.state.ledger import Ledger
from tests.conftest import FULL
from tests.unit.fake_node import CONFIG, FakeNode

SEQUENCES = int(os.environ.get("FLOX_NODE_EXAMPLES") or (2000 if FULL else 100))
OFTEN = st.sampled_from((True, True, True, False))
RELEASES = ("1.7.24", "2.1.9", "2.2.7", "2.3.7", "2.4.2")
A_RELEASE = st.runner().flatmap(lambda life: st.sampled_from(life.releases))
FOLDER = "etc/containerd/conf.d"
TOOLKIT = f"{FOLDER}/99-nvidia.toml"
OTHER = f"{FOLDER}/60-other.toml"
SETTINGS = Settings(restarts_per_hour=10**6, deadline_s=300.0)
IDS = {2: schema.CRI_GRPC, 3: schema.CRI_RUNTIME}
ROOT = """# written by an administrator
version = {number}
{imports}
[plugins."{plugin}"]
  max_container_log_line_size = {size}

[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{plugin}".containerd.runtimes.runc.options]
    SystemdCgroup = {systemd}
"""
NVIDIA = {"runtime_type": schema.RUNC_V2, "options": {"BinaryName": "/usr/bin/nvidia-container-runtime"}}
KATA = {"runtime_type": "io.containerd.kata.v2"}


class Killed(BaseException):
    pass


def table(number: int, name: str, values: Mapping[str, Any]) -> str:
    return block.tables_text({("plugins", IDS[number], "containerd", "runtimes", name): values}, "\n")


class Told(NamedTuple):
    """What `status` says; `well` is whether it finds nothing at all to tell."""

    drift: bool
    live: bool
    well: bool


class Life(RuleBasedStateMachine):
    payload: Payload
    releases: tuple[str, ...] = RELEASES

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.release = ""
        self.installed = self.pending = False
        self.runs = True  # whether what was on disk before what is pending has a CRI

    @initialize(release=A_RELEASE, number=st.sampled_from((2, 3)), imports=OFTEN, registered=OFTEN)
    def begin(self, release: str, number: int, imports: bool, registered: bool) -> None:
        number = 2 if release < "2" else number
        self._power_on(release, self._root(number, imports))
        self.release = release
        for root in self.roots:
            (root / FOLDER).mkdir()
        if registered:
            self._install()

    # What we do

    @precondition(lambda self: self.release)
    @rule()
    def we_install(self) -> None:
        self._run(self._install)

    @precondition(lambda self: self.installed)
    @rule()
    def we_upgrade(self) -> None:
        """A release of ours whose table is another one."""
        self._next_release()
        self._run(self._install)

    @precondition(lambda self: self.installed)
    @rule()
    def we_uninstall(self) -> None:
        self._run(self._uninstall)

    @precondition(lambda self: self.release)
    @rule(entry=st.integers(1, 8), going=st.booleans())
    def we_are_killed(self, entry: int, going: bool) -> None:
        """A kill at a journal entry, and the node's own way back."""
        if not self._others_are_well():
            return
        if self._is_killed(entry, going=going and self.installed):
            self.installed = True  # as far as anybody knows
            self.reboot()

    # What others do

    @precondition(lambda self: self.release)
    @rule(number=st.sampled_from((2, 3)), imports=OFTEN, systemd=st.booleans(), restart=OFTEN)
    def the_root_is_written_anew(self, number: int, imports: bool, systemd: bool, restart: bool) -> None:
        text = self._root(2 if self.release < "2" else number, imports, systemd=systemd)
        self._write(CONFIG.lstrip("/"), lambda _: text, restart=restart)

    @precondition(lambda self: self.release)
    @rule(number=st.sampled_from((2, 3)), versioned=st.booleans())
    def a_neighbour_adds_its_drop_in(self, number: int, versioned: bool) -> None:
        number = 2 if self.release < "2" else number
        self._write(OTHER, lambda _: (f"version = {number}\n" if versioned else "") + table(number, "kata", KATA))

    @precondition(lambda self: self.release)
    @rule()
    def a_neighbour_appends_to_the_root(self) -> None:
        def text(root: Path) -> str:
            old = (root / CONFIG.lstrip("/")).read_text()
            number = 3 if "version = 3" in old else 2
            return old if "runtimes.kata]" in old else old + table(number, "kata", KATA)

        self._write(CONFIG.lstrip("/"), text)

    @precondition(lambda self: self.release)
    @rule()
    def the_toolkit_copies_what_is_in_force(self) -> None:
        """NVIDIA's with the source `command`: a dump of everything, us included, in containerd's newest schema."""
        self._configure("command")

    @precondition(lambda self: self.release)
    @rule()
    def the_toolkit_follows_the_root(self) -> None:
        """NVIDIA's with the source `file`."""
        self._configure("file")

    @precondition(lambda self: self.release)
    @rule(path=st.sampled_from((TOOLKIT, OTHER)))
    def a_neighbour_goes(self, path: str) -> None:
        for root in self.roots:
            (root / path).unlink(missing_ok=True)
        self._restart()

    @precondition(lambda self: self.release)
    @rule(release=A_RELEASE)
    def another_containerd_is_installed(self, release: str) -> None:
        former, self.release = self.release, release
        if not self._others_are_well():
            self.release = former  # nobody would
            return
        self._become(release)
        self.reboot()

    @precondition(lambda self: self.release)
    @rule()
    def reboot(self) -> None:
        """The rollback's unit, containerd, and our boot unit; then the agent's look."""
        self._boot()
        if self.installed and self._others_are_well():
            self._run(self._install)

    # What must be

    @invariant()
    def it_is_what_it_would_be_without_us(self) -> None:
        if not self.release:
            return
        ours, control = map(self._load, self.roots)
        if control.cri is None or control.cri.state != "ok":
            return  # others have broken it
        assert ours.cri is not None, ours.refused
        assert ours.cri.state == "ok", ours.cri.reason
        assert ours.cri.same_handlers_but(control.cri, "flox"), (ours.cri.runtimes, control.cri.runtimes)
        assert _others(ours) == _others(control)
        self._ask_the_daemons()

    @invariant()
    def status_tells_the_truth(self) -> None:
        if not self.release or not self.installed or not self._told().well:
            return
        found = self._load(self.roots[0])
        assert found.cri is not None
        assert "flox" in found.cri.runtimes
        assert self._served()["flox"]["options"]["BinaryName"] == editor.Handler().binary_name
        default = found.cri.runtimes[found.cri.default_runtime]
        wanted = default.get("options", {}).get("SystemdCgroup", False)
        assert found.cri.runtimes["flox"]["options"].get("SystemdCgroup", False) == wanted

    def teardown(self) -> None:
        try:
            if self.release:
                self.end()
        finally:
            self.stack.close()

    def end(self) -> None:
        """The last that anybody does: what is pending is made live, and we go."""
        if not self._others_are_well():
            return
        self._restart()
        self._our_boot()
        if self.installed:
            self._uninstall()
        assert "flox" not in self._served()
        ours, control = map(self._tree, self.roots)
        assert ours == control

    # How

    def _install(self) -> None:
        if not self._others_are_well():
            return
        before = self._tree(self.roots[0])
        try:
            self._carry_out()
        except RefusedError as error:
            self._note(f"refused: {error.cause}")
            if not self.pending and self._has_place():
                raise
            assert self._tree(self.roots[0]) == before
            return
        self.installed, self.pending = True, False
        told = self._told()
        assert not told.drift
        assert told.live
        after, starts = self._tree(self.roots[0]), self._starts()
        self._carry_out()
        assert (self._tree(self.roots[0]), self._starts()) == (after, starts), "not idempotent"

    def _uninstall(self) -> None:
        if not self._others_are_well():
            return
        try:
            self._take_out()
        except RefusedError as error:
            self._note(f"refused: {error.cause}")
            if not self.pending:
                raise
            return
        self.installed = False
        assert not (self.roots[0] / "var/lib/flox-node").exists()
        ours, control = map(self._tree, self.roots)
        assert ours == control

    def _others_are_well(self) -> bool:
        """Their files, and what runs: nobody can install where others have brought the CRI down."""
        return self._load(self.roots[1]).state == "ok" and (self.runs or not self.pending)

    def _has_place(self) -> bool:
        """Whether the model has a place at all: it refuses where every one would be a mine."""
        from flox_node.containerd.config.placement import place

        found = self._load(self.roots[1])
        try:
            return bool(place(found, found.reader, editor.Handler()))
        except RefusedError:
            return False

    def _run(self, run: Callable[[], None]) -> None:
        with contextlib.suppress(Killed):
            run()

    def _write(self, path: str, text: Callable[[Path], str], *, restart: bool = True) -> None:
        if not self.pending:
            self.runs = self._others_are_well()
        for root in self.roots:
            (root / path).write_text(text(root))
        if restart:
            self._restart()
        else:
            self.pending = True

    def _load(self, root: Path) -> Effective:
        return load(CONFIG, HostFiles(root), self._version())

    def _number(self, root: Path) -> int:
        return 3 if "version = 3" in (root / CONFIG.lstrip("/")).read_text() else 2

    def _note(self, text: str) -> None:
        if currently_in_test_context():
            note(text)

    # What a node is

    @property
    def roots(self) -> tuple[Path, Path]:
        """The node's `/` with us, and without."""
        return self.node.root, self.control

    def _power_on(self, release: str, config: str) -> None:
        memory = Path("/dev/shm")
        folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.stack.callback(shutil.rmtree, folder)
        self.node = FakeNode(folder / "ours", release, config)
        self.control = folder / "control"
        shutil.copytree(self.node.root, self.control)
        self.stack.enter_context(mock.patch.object(live_cri, "call", self.node.containerd.call))
        self.stack.enter_context(mock.patch.object(planner, "placing", return_value=()))
        self.stack.enter_context(mock.patch.object(planner, "EMPTY_IMAGE", ""))
        self.stack.enter_context(mock.patch.object(editor, "_ANNOTATIONS", ["flox.dev/*"]))

    def _configure(self, source: Literal["command", "file"]) -> None:
        """What NVIDIA's toolkit does at the start of its pod."""

        def dumped(root: Path) -> str:
            (root / TOOLKIT).unlink(missing_ok=True)
            found = self._load(root)
            if found.cri is None or found.cri.state != "ok":
                return f"version = {self._number(root)}\n"
            tables = tables_in_force(found.merged, found.containerd)
            cri = tables.setdefault(found.cri.plugin, {})
            cri.setdefault("containerd", {})["runtimes"] = {
                # Sorted, as containerd dumps it.
                **{name: self._spelt_out(values) for name, values in sorted(found.cri.runtimes.items())},
                "nvidia": NVIDIA,
            }
            cri["containerd"]["default_runtime_name"] = "nvidia"
            if found.cri.plugin == schema.CRI_RUNTIME:
                tables.setdefault(schema.CRI_IMAGES, {})  # a dump has the table of every plugin
            return f"version = {found.merged['version']}\n" + block.tables_text(
                {("plugins", name): values for name, values in sorted(tables.items())}, "\n"
            )

        def followed(root: Path) -> str:
            return f"version = {self._number(root)}\n" + table(self._number(root), "nvidia", NVIDIA)

        self._write(TOOLKIT, dumped if source == "command" else followed)

    def _ask_the_daemons(self) -> None:
        """Whether they say what the model says: the fake one is the model."""

    def _version(self) -> ContainerdVersion:
        return ContainerdVersion.parse(self.release)

    def _become(self, release: str) -> None:
        self.node.containerd.version = release

    def _boot(self) -> None:
        self.node.systemd.stop("flox-node-deadline.timer", timeout=1)
        for script in self.node.root.rglob("flox-node-rollback.sh"):
            subprocess.run(["sh", script, "boot", self.node.root], check=False, capture_output=True)
        self._restart()
        if self._others_are_well():  # else the boot unit waits for a CRI that does not come
            self._our_boot()

    def _our_boot(self) -> None:
        with contextlib.suppress(FloxNodeError):
            boot(self.node.host, lambda _: None)

    def _restart(self) -> None:
        self.pending = False
        with contextlib.suppress(FloxNodeError):
            self.node.containerd.read_config()
            return
        self.node.containerd.loads_cri = False

    def _starts(self) -> object:
        return self.node.containerd.restarts

    def _served(self) -> Mapping[str, Any]:
        return self.node.containerd.handlers

    def _carry_out(self) -> None:
        install(self.node.host, self.payload, SETTINGS, lambda _: None)

    def _next_release(self) -> None:
        editor._ANNOTATIONS[:] = ["flox.dev/*", *(["flox.example/*"] if len(editor._ANNOTATIONS) == 1 else [])]

    def _take_out(self) -> None:
        uninstall(self.node.host, SETTINGS, lambda _: None, purge=True)

    def _told(self) -> Told:
        said = status(self.node.host, SETTINGS)
        well = said.installed and not (said.drift or said.interrupted or said.problem)
        return Told(bool(said.drift), said.handler_live, well)

    def _is_killed(self, entry: int, *, going: bool) -> bool:
        """Install, or uninstall, with a kill after this entry of the journal; False when it ended before."""
        with _killed_at(entry) as killed:
            self._run(self._uninstall if going else self._install)
        return killed()

    @staticmethod
    def _root(number: int, imports: bool, *, systemd: bool = True) -> str:
        line = f'imports = ["/{FOLDER}/*.toml"]' if imports else ""
        text = str(systemd).lower()
        return ROOT.format(number=number, plugin=IDS[number], imports=line, systemd=text, size=65536)

    @staticmethod
    def _spelt_out(values: dict[str, object]) -> dict[str, object]:
        return {"snapshotter": "", "cni_max_conf_num": 0, "privileged_without_host_devices": False, **values}

    def _tree(self, root: Path) -> Mapping[str, object]:
        state = (root / "run", root / "var")
        files = (path for path in root.rglob("*") if path.is_file())
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in files
            if not any(path.is_relative_to(folder) for folder in state)
        }


def _others(found: Effective) -> dict[str, object]:
    """The CRI's settings apart from handlers."""
    return {
        name: {key: value for key, value in values.items() if key != "containerd"}
        for name, values in tables_in_force(found.merged, found.containerd).items()
        if any(key != "containerd" for key in values)
    }


@contextlib.contextmanager
def _killed_at(entry: int) -> Iterator[Callable[[], bool]]:
    entries = 0
    append = Ledger._append

    def counting(self: Ledger, line: dict[str, object]) -> None:
        nonlocal entries
        append(self, line)
        entries += 1
        if entries == entry:
            raise Killed

    with mock.patch.object(Ledger, "_append", counting):
        yield lambda: entries >= entry


def run_lives(machine: type[Life], lives: int, *, steps: int = 8) -> None:
    """So many random sequences, the same ones at each run."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],  # a life takes a while: no shrinking
            report_multiple_bugs=False,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(7200)
def test_a_node_is_what_it_would_be_without_us_plus_our_handler_whatever_comes(payload: Payload) -> None:
    Life.payload = payload
    run_lives(Life, SEQUENCES)
