"""What others do to a registered node: repairs, edits that nobody restarted for, another containerd under ours."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flox_node.agent.observe import look
from flox_node.containerd.live import restart
from flox_node.errors import InUseError, OutsideError, RefusedError
from flox_node.host import HostFiles
from flox_node.payload import Payload
from flox_node.plan import Outcome, StepResult, install, preview, preview_uninstall, uninstall
from flox_node.plan.doctor import examine
from flox_node.plan.heal import OursToBlameError
from flox_node.plan.maintenance import boot
from flox_node.plan.status import status
from flox_node.settings import Settings
from tests.unit.fake_node import CONFIG, KUBEADM, PLUGIN, FakeNode

SETTINGS = Settings()
DROP_IN = "etc/containerd/conf.d/50-flox-node.toml"
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
KATA = f"""
[plugins."{PLUGIN}".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2"
"""


def _ignore(_: StepResult) -> None:
    pass


@contextmanager
def _node(folder: Path, version: str, config: str) -> Iterator[FakeNode]:
    node = FakeNode(folder / "node", version, config)
    (node.root / "etc/containerd/conf.d").mkdir()
    with node.containerd.serving():
        yield node


@pytest.fixture(params=["1.7.24", "2.1.9", "2.1.9 with a folder of drop-ins"])
def any_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeNode]:
    version, _, imports = request.param.partition(" ")
    with _node(tmp_path, version, (IMPORTS if imports else "") + KUBEADM) as node:
        yield node


# What was before us


@pytest.mark.parametrize("repairs", [1, 3])
def test_after_any_number_of_repairs_an_uninstall_leaves_what_the_node_would_be_without_us(
    any_node: FakeNode, payload: Payload, repairs: int
) -> None:
    node = any_node
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    for repair in range(repairs):
        former, wanted = ("true", "false") if repair % 2 == 0 else ("false", "true")
        old = node.config.read_text()
        changed = old.replace(f"SystemdCgroup = {former}", f"SystemdCgroup = {wanted}", 1)
        assert changed != old
        node.config.write_text(changed)
        node.containerd.read_config()
        assert status(node.host, SETTINGS).drift
        install(node.host, payload, SETTINGS, _ignore)
        assert not status(node.host, SETTINGS).drift
        assert node.containerd.handlers["flox"]["options"].get("SystemdCgroup", False) is (wanted == "true")
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert "flox" not in node.containerd.handlers
    expected = dict(before)
    if repairs % 2:
        mode, content = expected["etc/containerd/config.toml"]
        expected["etc/containerd/config.toml"] = (
            mode,
            content.replace(b"SystemdCgroup = true", b"SystemdCgroup = false"),
        )
    assert node.tree() == expected


def test_a_table_that_an_older_release_wrote_goes_without_a_trace(
    any_node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flox_node.containerd.config import editor

    before = any_node.tree()
    with monkeypatch.context() as patch:
        patch.setattr(editor, "_ANNOTATIONS", ("flox.dev/environment",))
        install(any_node.host, payload, SETTINGS, _ignore)
    install(any_node.host, payload, SETTINGS, _ignore)
    assert any_node.containerd.restarts == 2
    uninstall(any_node.host, SETTINGS, _ignore, purge=True)
    assert any_node.tree() == before


# What others have armed


def _removed_handler(config: Path) -> None:
    config.write_text(config.read_text().replace(KATA, ""))


def _added_handler(config: Path) -> None:
    config.write_text(config.read_text() + KATA.replace("kata", "gvisor"))


def _other_cgroups(config: Path) -> None:
    config.write_text(config.read_text().replace("SystemdCgroup = true", "SystemdCgroup = false"))


def _no_default(config: Path) -> None:
    config.write_text(config.read_text() + f'\n[plugins."{PLUGIN}".containerd]\n  default_runtime_name = "nvidia"\n')


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (_removed_handler, 'config.toml: the handler "kata", which containerd serves, is in no file any more'),
        (_added_handler, 'config.toml, line 15: the handler "gvisor" is not served yet'),
        (_other_cgroups, 'config.toml, line 7: the handler "runc" is another one'),
        (_no_default, "containerd would not start with it as it is now"),
    ],
)
def test_a_restart_that_would_make_an_edit_of_others_live_is_refused(
    any_node: FakeNode, payload: Payload, arm: Callable[[Path], None], says: str
) -> None:
    node = any_node
    node.config.write_text(node.config.read_text() + KATA)
    node.containerd.read_config()
    arm(node.config)
    before = node.tree()
    for run in (
        lambda: preview(node.host, payload, SETTINGS),
        lambda: install(node.host, payload, SETTINGS, _ignore),
    ):
        with pytest.raises(RefusedError) as caught:
            run()
        if arm is not _no_default:  # the editor refuses that file by itself
            line = says.replace("line 15", f"line {15 + node.config.read_text().startswith('imports')}")
            line = line.replace("line 7", f"line {7 + node.config.read_text().startswith('imports')}")
            assert line in caught.value.cause
            assert "systemctl restart containerd.service" in caught.value.remedy
            assert caught.value.action.startswith("register-handler")
    assert node.tree() == before
    assert node.containerd.restarts == 0


def test_a_touched_file_that_means_the_same_is_no_reason_to_refuse(any_node: FakeNode, payload: Payload) -> None:
    any_node.config.write_text(any_node.config.read_text() + "# a comment\n")
    os.utime(any_node.config)
    install(any_node.host, payload, SETTINGS, _ignore)
    assert any_node.containerd.restarts == 1


def test_an_uninstall_restarts_nothing_that_others_have_armed(any_node: FakeNode, payload: Payload) -> None:
    install(any_node.host, payload, SETTINGS, _ignore)
    any_node.config.write_text(any_node.config.read_text() + KATA)
    with pytest.raises(RefusedError, match='the handler "kata" is not served yet'):
        uninstall(any_node.host, SETTINGS, _ignore)
    any_node.containerd.read_config()
    uninstall(any_node.host, SETTINGS, _ignore)
    assert set(any_node.containerd.handlers) == {"runc", "kata"}


def test_the_doctor_tells_what_a_restart_would_make_live(any_node: FakeNode, payload: Payload) -> None:
    def found() -> str:
        return {result.id: result.cause for result in examine(any_node.host, SETTINGS)}["pending-changes"]

    assert found() == ""
    install(any_node.host, payload, SETTINGS, _ignore)
    assert found() == ""
    any_node.config.write_text(any_node.config.read_text() + KATA)
    assert 'the handler "kata" is not served yet' in found()


# What ours hides of the root


def test_an_install_brings_back_what_our_own_file_hides_of_a_root_that_was_written_anew(
    tmp_path: Path, payload: Payload
) -> None:
    """Ours is for a schema that is gone: neither proof nor judge takes what is in force now for the baseline."""
    with _node(tmp_path, "2.1.9", IMPORTS + KUBEADM) as node:
        before = node.tree()
        install(node.host, payload, SETTINGS, _ignore)
        ours = node.root / DROP_IN
        ours.write_text(ours.read_text().replace(PLUGIN, "io.containerd.cri.v1.runtime"))
        node.containerd.read_config()
        assert not node.containerd.handlers["runc"]["options"], "it hides the root's"
        assert status(node.host, SETTINGS).drift
        install(node.host, payload, SETTINGS, _ignore)
        assert node.containerd.handlers["runc"]["options"] == {"SystemdCgroup": True}
        assert node.containerd.handlers["flox"]["options"]["SystemdCgroup"] is True
        assert not status(node.host, SETTINGS).drift
        uninstall(node.host, SETTINGS, _ignore, purge=True)
        assert node.tree() == before


# Another containerd beside the kubelet's


@pytest.mark.parametrize(
    ("imports", "shared"), [("/etc/containerd/conf.d/*.toml", True), ("/var/snap/k8s/containerd/*.toml", False)]
)
def test_another_containerd_that_reads_what_we_write_is_named_by_plan_and_doctor(
    tmp_path: Path, payload: Payload, imports: str, shared: bool
) -> None:
    """As with k8s-snap beside a node's own: https://github.com/canonical/k8s-snap/issues/1991"""
    theirs = "/var/snap/k8s/containerd/config.toml"
    with _node(tmp_path, "2.1.9", IMPORTS + KUBEADM) as node:
        own = node.processes.socket_owner("/run/containerd/containerd.sock")
        assert own is not None
        other = dataclasses.replace(own, pid=77, exe="/snap/k8s/containerd", argv=("containerd", f"--config={theirs}"))
        node.processes.others = [own, other]
        (node.root / theirs[1:]).parent.mkdir(parents=True)
        (node.root / theirs[1:]).write_text(f'version = 2\nimports = ["{imports}"]\n')

        def told() -> tuple[str, str]:
            step = preview(node.host, payload, SETTINGS).steps[-1]
            doctor = {result.id: result.cause for result in examine(node.host, SETTINGS)}
            return step.reason, doctor["shared-configuration"]

        text = f"/{DROP_IN} is read by another containerd as well (pid 77, {theirs})"
        missing = f"/{DROP_IN} does not register the handler flox"
        assert told() == ((f"{missing}; {text}", text) if shared else (missing, ""))
        install(node.host, payload, SETTINGS, _ignore)
        assert told() == ("", text if shared else "")


# Another containerd under our registration


@pytest.fixture
def downgraded(tmp_path: Path, payload: Payload) -> Iterator[FakeNode]:
    """containerd 1.7 with a drop-in of ours that was made for 2.1: it replaces the whole CRI table."""
    with _node(tmp_path, "2.1.9", IMPORTS + KUBEADM) as node:
        install(node.host, payload, SETTINGS, _ignore)
        assert (node.root / DROP_IN).exists()
        node.containerd.version = "1.7.24"
        node.containerd.read_config()
        assert not node.containerd.loads_cri
        node.containerd.restarts = 0
        node.containerd.started_at -= 100  # whoever waits for it to start has waited long enough
        yield node


def test_a_containerd_that_our_drop_in_keeps_down_is_uninstalled_to_the_byte(downgraded: FakeNode) -> None:
    node = downgraded
    steps = uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert node.containerd.loads_cri
    assert node.containerd.restarts == 1
    assert not (node.root / DROP_IN).exists()
    assert not (node.root / "opt/flox-node").exists()
    assert set(node.containerd.handlers) == {"runc"}
    assert node.systemd.active["kubelet.service"]
    told = next(step.steps for step in steps if step.key.startswith("register-handler"))
    assert told[-1] == "containerd answers again"


def test_an_install_registers_the_handler_anew_for_the_containerd_that_is_there(
    downgraded: FakeNode, payload: Payload
) -> None:
    node = downgraded
    with pytest.raises(
        OursToBlameError, match=r"containerd is 1\.7\.24 now, and the handler was registered for 2\.1\.9"
    ):
        preview(node.host, payload, SETTINGS)
    install(node.host, payload, SETTINGS, _ignore)
    found = status(node.host, SETTINGS)
    assert (found.handler_live, found.drift) == (True, ())
    assert not (node.root / DROP_IN).exists()
    uninstall(node.host, SETTINGS, _ignore)
    assert node.config.read_text() == IMPORTS + KUBEADM


def test_a_boot_registers_the_handler_anew_for_the_containerd_that_is_there(downgraded: FakeNode) -> None:
    results: list[StepResult] = []
    boot(downgraded.host, results.append)
    assert [step.outcome for step in results if step.key.startswith("register-handler")] == [
        Outcome.REVERTED,
        Outcome.DONE,
    ]
    found = status(downgraded.host, SETTINGS)
    assert (found.handler_live, found.drift, found.interrupted) == (True, (), False)
    restarts = downgraded.containerd.restarts
    boot(downgraded.host, _ignore)
    assert downgraded.containerd.restarts == restarts


def test_the_doctor_names_us_as_the_reason(downgraded: FakeNode) -> None:
    causes = {result.id: result.cause for result in examine(downgraded.host, SETTINGS)}
    assert "the handler was registered for 2.1.9" in causes["cri-answers"]


def test_the_agents_look_asks_for_an_install_that_restarts(downgraded: FakeNode, payload: Payload) -> None:
    seen = look(downgraded.host, payload, SETTINGS)
    assert (seen.error, seen.needed, seen.restart, seen.live) == (None, ("register-handler",), True, False)
    assert "the handler was registered for 2.1.9" in seen.reason


def test_the_agents_look_tells_what_a_restart_would_make_live(any_node: FakeNode, payload: Payload) -> None:
    any_node.config.write_text(any_node.config.read_text() + KATA)
    seen = look(any_node.host, payload, SETTINGS)
    assert seen.error is not None
    assert seen.error["error"] == "refused"
    assert 'the handler "kata" is not served yet' in str(seen.error["cause"])


def test_pods_that_run_on_a_containerd_without_a_cri_keep_an_uninstall_away(downgraded: FakeNode) -> None:
    bundle = downgraded.root / "run/containerd/io.containerd.runtime.v2.task/k8s.io/c0ffee/options.json"
    bundle.parent.mkdir(parents=True)
    bundle.write_text('{"binary_name": "/opt/flox-node/bin/flox-runtime"}')
    with pytest.raises(InUseError, match="1 containers and sandboxes"):
        uninstall(downgraded.host, SETTINGS, _ignore)
    uninstall(downgraded.host, SETTINGS, _ignore, force=True)
    assert downgraded.containerd.loads_cri


def test_a_containerd_that_is_down_for_another_reason_is_not_blamed_on_us_and_uninstalled_all_the_same(
    any_node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    start_again = restart.start_again
    impatient = lambda host, unit, socket, _: start_again(host, unit, socket, 0.0)  # noqa: E731
    monkeypatch.setattr(restart, "start_again", impatient)  # waiting helps nothing here
    broken = node.config.read_text() + f'\n[plugins."{PLUGIN}".containerd]\n  default_runtime_name = "nvidia"\n'
    node.config.write_text(broken)
    node.containerd.read_config()
    assert not node.containerd.loads_cri
    node.containerd.started_at -= 100
    with pytest.raises(OutsideError) as caught:
        install(node.host, payload, SETTINGS, _ignore)
    assert not isinstance(caught.value, OursToBlameError)
    steps = uninstall(node.host, SETTINGS, _ignore)
    told = next(step.steps for step in steps if step.key.startswith("register-handler"))
    assert "does not answer without it either" in told[-1]
    assert "flox" not in node.config.read_text()
    assert not (node.root / DROP_IN).exists()
    assert not (node.root / "var/lib/flox-node").exists()


def test_an_upgraded_containerd_keeps_what_was_registered_in_place(tmp_path: Path, payload: Payload) -> None:
    with _node(tmp_path, "1.7.24", KUBEADM) as node:
        install(node.host, payload, SETTINGS, _ignore)
        node.containerd.version = "2.1.9"
        node.containerd.read_config()
        boot(node.host, _ignore)
        assert status(node.host, SETTINGS).drift == ()
        uninstall(node.host, SETTINGS, _ignore)
        assert node.config.read_text() == KUBEADM


# What pods leave, and put over our folders


def _examined(node: FakeNode, check: str) -> str:
    return {result.id: result.cause for result in examine(node.host, SETTINGS)}[check]


def test_a_mount_over_our_folders_is_told(any_node: FakeNode, payload: Payload) -> None:
    install(any_node.host, payload, SETTINGS, _ignore)
    table = any_node.root / "proc/1/mountinfo"
    table.parent.mkdir(parents=True)
    lines = [
        "20 1 0:1 / / rw - ext4 /dev/vda rw",
        "21 20 0:2 / /run rw - tmpfs tmpfs rw",
        "22 20 0:3 / /opt/flox-node rw - ext4 /dev/vdb rw",  # a disk of its own
        "23 21 0:4 / /run/flox-node/realise rw - tmpfs tmpfs rw",
    ]
    table.write_text("\n".join(lines) + "\n")
    assert _examined(any_node, "foreign-mounts") == ""
    table.write_text("\n".join([*lines, "24 21 0:5 / /run/flox-node rw - tmpfs tmpfs rw"]) + "\n")
    assert "/run/flox-node is hidden by a mount (tmpfs)" in _examined(any_node, "foreign-mounts")


def test_records_that_belong_to_no_pod_are_told_and_go_with_the_next_boot(any_node: FakeNode, payload: Payload) -> None:
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    node.containerd.sandboxes = [("web", "flox")]
    names = ("pods/id-web.json", "pods/gone.json", "containers/gone.json", "pods/fresh.json")
    for name in names:
        file = node.root / "run/flox-node" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    old = [node.root / "run/flox-node" / name for name in names if "fresh" not in name]

    class Old(HostFiles):
        def changed_at(self, path: str) -> float | None:
            changed_at = super().changed_at(path)
            return 0.0 if changed_at is not None and self.real(path) in old else changed_at

    host = dataclasses.replace(node.host, files=Old(node.root))
    told = {result.id: result.cause for result in examine(host, SETTINGS)}["orphan-records"]
    assert told == "2 records belong to no pod: /run/flox-node/pods/gone.json, /run/flox-node/containers/gone.json"
    boot(host, _ignore)
    left = {str(file.relative_to(node.root / "run/flox-node")) for file in old if file.exists()}
    assert left == {"pods/id-web.json"}


# What hands do


def _ways_to_uninstall(node: FakeNode) -> tuple[Callable[[], object], ...]:
    return lambda: preview_uninstall(node.host, SETTINGS), lambda: uninstall(node.host, SETTINGS, _ignore)


def test_ours_as_the_default_runtime_is_no_reason_to_refuse_an_upgrade_but_an_uninstall(
    any_node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flox_node.containerd.config import editor

    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    default = f'\n[plugins."{PLUGIN}".containerd]\n  default_runtime_name = "flox"\n'
    node.config.write_text(node.config.read_text() + default)
    node.containerd.read_config()
    monkeypatch.setattr(editor, "_ANNOTATIONS", ["flox.dev/*", "flox.example/*"])
    install(node.host, payload, SETTINGS, _ignore)
    assert node.containerd.restarts == 2
    assert not status(node.host, SETTINGS).drift
    before = node.tree()
    for run in _ways_to_uninstall(node):
        with pytest.raises(RefusedError, match='"flox" is the default runtime') as caught:
            run()
        assert "default_runtime_name" in caught.value.remedy
    assert node.tree() == before
    told = status(node.host, SETTINGS)
    assert (told.drift, told.interrupted, told.handler_live) == ((), False, True), "nothing was begun"
    node.config.write_text(node.config.read_text().replace(default, ""))
    node.containerd.read_config()
    uninstall(node.host, SETTINGS, _ignore)
    assert node.config.read_text().removeprefix(IMPORTS) == KUBEADM


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9", "2.4.2"])
def test_a_file_of_our_own_files_name_that_says_something_else_is_not_ours(
    tmp_path: Path, payload: Payload, version: str
) -> None:
    with _node(tmp_path, version, KUBEADM if version < "2" else IMPORTS + KUBEADM) as node:
        theirs = node.root / DROP_IN
        theirs.write_text('# mine\n[debug]\n  level = "debug"\n')
        node.containerd.read_config()
        before = node.tree()
        install(node.host, payload, SETTINGS, _ignore)
        assert theirs.read_text().startswith('# mine\n[debug]\n  level = "debug"\n')
        assert not status(node.host, SETTINGS).drift
        uninstall(node.host, SETTINGS, _ignore, purge=True)
        assert node.tree() == before


@pytest.mark.parametrize("version", ["2.1.9", "2.4.2"])
def test_what_others_write_into_our_own_file_outlives_a_repair_and_an_uninstall(
    tmp_path: Path, payload: Payload, version: str
) -> None:
    with _node(tmp_path, version, IMPORTS + KUBEADM) as node:
        install(node.host, payload, SETTINGS, _ignore)
        ours = node.root / DROP_IN
        ours.write_text(ours.read_text() + KATA)
        node.containerd.read_config()
        assert not status(node.host, SETTINGS).drift
        node.config.write_text(node.config.read_text().replace("SystemdCgroup = true", "SystemdCgroup = false"))
        node.containerd.read_config()
        install(node.host, payload, SETTINGS, _ignore)
        assert node.containerd.handlers["flox"]["options"].get("SystemdCgroup", False) is False
        assert set(node.containerd.handlers) == {"runc", "flox", "kata"}
        uninstall(node.host, SETTINGS, _ignore)
        assert set(node.containerd.handlers) == {"runc", "kata"}
        assert ours.read_text() == KATA


@pytest.mark.parametrize("what", ["conffile", "nothing"])
def test_a_root_that_a_package_replaced_or_a_hand_removed_is_registered_in_and_given_back(
    any_node: FakeNode, payload: Payload, what: str
) -> None:
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    stock = f'version = 2\n\n[plugins."{PLUGIN}".cni]\n  bin_dir = "/usr/lib/cni"\n'
    node.config.write_text(stock) if what == "conffile" else node.config.unlink()
    node.containerd.read_config()
    assert status(node.host, SETTINGS).drift
    install(node.host, payload, SETTINGS, _ignore)
    told = status(node.host, SETTINGS)
    assert (told.drift, told.handler_live) == ((), True)
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    assert (node.config.read_text() if node.config.exists() else None) == (stock if what == "conffile" else None)
    assert not (node.root / DROP_IN).exists()


@pytest.mark.parametrize("gone", [["var/lib/flox-node"], ["var/lib/flox-node", "opt/flox-node"]])
def test_an_uninstall_without_a_receipt_says_how_there_is_one_again(
    any_node: FakeNode, payload: Payload, gone: list[str]
) -> None:
    node = any_node
    before = node.tree()
    install(node.host, payload, SETTINGS, _ignore)
    for folder in gone:
        shutil.rmtree(node.root / folder)
    for run in _ways_to_uninstall(node):
        with pytest.raises(RefusedError, match="no receipt") as caught:
            run()
        assert "flox-node install" in caught.value.remedy
    install(node.host, payload, SETTINGS, _ignore)
    assert node.containerd.restarts == 1
    uninstall(node.host, SETTINGS, _ignore, purge=True)
    left = {path: found for path, found in node.tree().items() if not path.endswith(".wants")}
    assert left == before
    assert uninstall(node.host, SETTINGS, _ignore, purge=True) == [], "and twice does nothing"


def test_an_install_on_a_node_that_is_down_says_why_it_is(any_node: FakeNode, payload: Payload) -> None:
    node = any_node
    _no_default(node.config)
    node.containerd.read_config()
    node.containerd.started_at -= 100
    before = node.tree()
    for run in (
        lambda: preview(node.host, payload, SETTINGS),
        lambda: install(node.host, payload, SETTINGS, _ignore),
    ):
        with pytest.raises(OutsideError, match=r'config.toml.*default_runtime_name is "nvidia"') as caught:
            run()
        assert "containerd explain" in caught.value.remedy
    assert node.tree() == before


@pytest.mark.parametrize("edited", [False, True])
def test_a_containerd_that_is_started_with_another_file_has_one_registration_and_leaves_both_files(
    any_node: FakeNode, payload: Payload, edited: bool
) -> None:
    """A unit's drop-in with another --config, or a snap's next revision."""
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    moved = node.root / "etc/other/config.toml"
    moved.parent.mkdir()
    moved.write_text(KUBEADM)
    node.containerd.config_path = "/etc/other/config.toml"
    node.systemd.unit = dataclasses.replace(
        node.systemd.unit, start_command=("/usr/bin/containerd", "--config", "/etc/other/config.toml")
    )
    node.containerd.read_config()
    assert status(node.host, SETTINGS).drift
    install(node.host, payload, SETTINGS, _ignore)
    told = status(node.host, SETTINGS)
    assert (told.drift, told.handler_live) == ((), True)
    if edited:
        node.config.write_text(node.config.read_text() + "# a word\n")
    uninstall(node.host, SETTINGS, _ignore)
    assert moved.read_text() == KUBEADM
    assert node.config.read_text().removeprefix(IMPORTS) == KUBEADM + ("# a word\n" if edited else "")
    assert not (node.root / DROP_IN).exists()


def test_our_lines_go_from_a_file_that_somebody_broke_around_them(any_node: FakeNode, payload: Payload) -> None:
    """A tool that appends a handler of our name: the file is no TOML any more, and without ours it is."""
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    theirs = f'[plugins."{PLUGIN}".containerd.runtimes.flox]\n  runtime_type = "io.containerd.runc.v2"\n'
    node.config.write_text(node.config.read_text() + theirs)
    uninstall(node.host, SETTINGS, _ignore)
    assert node.config.read_text().removeprefix(IMPORTS) == KUBEADM + theirs
    assert not (node.root / DROP_IN).exists()


def test_a_mark_that_lost_the_other_one_goes_with_our_table(any_node: FakeNode, payload: Payload) -> None:
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    text = node.config.read_text()
    for mark in ("begin", "end"):
        node.config.write_text(text.replace(f"# flox-node: {mark} handler flox\n", ""))
        assert not status(node.host, SETTINGS).drift
    uninstall(node.host, SETTINGS, _ignore)
    assert node.config.read_text().removeprefix(IMPORTS) == KUBEADM


def test_the_agents_look_tells_an_install_that_restarts_from_one_that_does_not(
    any_node: FakeNode, payload: Payload
) -> None:
    assert look(any_node.host, payload, SETTINGS).restart
    install(any_node.host, payload, SETTINGS, _ignore)
    (any_node.root / "etc/flox-node/policy.json").unlink()
    seen = look(any_node.host, payload, SETTINGS)
    assert (seen.needed, seen.restart) == (("write-policy",), False)


def test_flatcar_with_a_new_image_is_uninstalled_although_its_handlers_are_others_then(
    tmp_path: Path, payload: Payload
) -> None:
    vendor, unit = "/usr/share/containerd/config.toml", "etc/systemd/system/containerd.service.d/90-flox-node.conf"
    with _node(tmp_path, "1.7.24", KUBEADM) as node:
        node.config.rename(node.root / "image.toml")
        (node.root / vendor[1:]).parent.mkdir(parents=True)
        (node.root / "image.toml").rename(node.root / vendor[1:])
        (node.root / "etc/os-release").write_text("ID=flatcar\n")
        node.containerd.config_path = vendor
        read_config = node.containerd.read_config

        def started() -> None:
            node.containerd.config_path = CONFIG if (node.root / unit).exists() else vendor
            read_config()

        node.containerd.read_config = started  # type: ignore[method-assign]
        started()
        before = node.tree()
        install(node.host, payload, SETTINGS, _ignore)
        assert not status(node.host, SETTINGS).drift
        new = KUBEADM.replace("SystemdCgroup = true", "SystemdCgroup = false")
        (node.root / vendor[1:]).write_text(new)
        started()  # a reboot into it
        (drift,) = status(node.host, SETTINGS).drift
        assert "was replaced since" in drift.reason
        with pytest.raises(RefusedError, match="was replaced since"):
            install(node.host, payload, SETTINGS, _ignore)
        uninstall(node.host, SETTINGS, _ignore, purge=True)
        assert node.containerd.handlers["runc"]["options"] == {"SystemdCgroup": False}
        assert {**node.tree(), vendor[1:]: before[vendor[1:]]} == before
        install(node.host, payload, SETTINGS, _ignore)
        assert node.containerd.handlers["flox"]["options"].get("SystemdCgroup", False) is False


def test_a_node_that_others_brought_down_is_left_alone_until_they_restart_it(
    any_node: FakeNode, payload: Payload
) -> None:
    """Their file is put right already, and nobody has restarted containerd."""
    node = any_node
    install(node.host, payload, SETTINGS, _ignore)
    right = node.config.read_text()
    _no_default(node.config)
    node.containerd.read_config()
    node.containerd.started_at -= 100
    node.config.write_text(right)
    before = node.tree()
    with pytest.raises(OutsideError, match="does not answer"):
        preview(node.host, payload, SETTINGS)
    assert (node.tree(), node.containerd.restarts) == (before, 1)
    node.containerd.read_config()
    install(node.host, payload, SETTINGS, _ignore)
    assert not status(node.host, SETTINGS).drift
