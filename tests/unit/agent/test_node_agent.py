"""One pass of the loop on the node, with the commands that it runs answered by hand."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flox_node.agent import exchange
from flox_node.agent import node as loop
from flox_node.agent.children import Ended
from flox_node.agent.exchange import Granted, NodeState, PodNews
from flox_node.agent.node import NodeAgent
from flox_node.agent.seen import Seen
from flox_node.environments import notices
from flox_node.environments.paths import Paths
from flox_node.host.files import HostFiles
from flox_node.host.watch import FolderWatch, fingerprint
from flox_node.kube.names import Happening, Phase, Reason

PLACE, REGISTER = "place-payload:new", "register-handler"
WELL = Seen(installed=True, live=True, payload="new", identity="boot", versions={"shim": "1"})
FRESH = Seen(payload="new", needed=(PLACE, REGISTER), restart=True, reason="nothing is there")
DRIFTED = dataclasses.replace(WELL, needed=(REGISTER,), restart=True, reason="the table is gone", drift=1, live=False)
UPGRADE = dataclasses.replace(WELL, needed=(PLACE,), upgrade=True, reason="the payload is not there")
STEP = {"key": REGISTER, "outcome": "done", "seconds": 1.5, "steps": ["armed", "restarted: 3 of 3 containers run on"]}
DONE = Ended(0, {"changed": True, "steps": [STEP]})


class Node:
    """The agent of a node whose commands end as they are told to: looks and runs each in their order."""

    def __init__(self, folder: Path, mode: str = "install") -> None:
        self.looks: list[Seen | Ended] = []
        self.runs: list[Ended] = []
        self.called: list[list[str]] = []
        self.own, self.other, self.settings = folder / "node", folder / "reporter", folder / "settings"
        for path in (self.own, self.other, self.settings):
            path.mkdir(exist_ok=True)
        self.where = ("--host-root", str(folder), "--json")
        self.agent = self.restarted(folder, mode)

    def restarted(self, folder: Path, mode: str = "install") -> NodeAgent:
        return NodeAgent(
            mode,
            host_root=folder,
            payload=Path("/payload"),
            settings_folder=self.settings,
            own=self.own,
            other=self.other,
            run=self.run,
        )

    def run(self, argv: Sequence[str], timeout: float) -> Ended:
        if argv[1] == "look":
            found = self.looks.pop(0)
            return found if isinstance(found, Ended) else Ended(0, dataclasses.asdict(found))
        self.called.append(list(argv))
        return self.runs.pop(0)

    @property
    def told(self) -> NodeState:
        state = exchange.read(self.own, "state.json", NodeState)
        assert state is not None
        return state

    def grant(self) -> None:
        exchange.write(self.other, "slot.json", Granted(self.told.slot))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def failure(error: str, code: int) -> Ended:
    return Ended(code, {"error": error, "exit_code": code, "cause": "Because.", "remedy": "Do this."})


def test_a_fresh_node_asks_for_a_slot_and_changes_nothing_until_it_has_it(node: Node) -> None:
    node.looks = [FRESH, FRESH]
    node.agent.converge()
    assert (node.told.phase, node.told.reason, node.called) == (Phase.WAITING, Reason.WAITING, [])
    first = node.told.slot
    assert first
    exchange.write(node.other, "slot.json", Granted("somebody else's"))
    node.agent.converge()
    assert node.called == []
    assert node.told.slot == first


def test_with_a_slot_it_installs_and_tells_that_it_is_live(node: Node) -> None:
    node.looks, node.runs = [FRESH, FRESH, WELL], [DONE]
    node.agent.converge()
    node.grant()
    node.agent.converge()
    assert node.called[0][:4] == ["flox_node", "install", "--payload", "/payload"]
    assert (node.told.phase, node.told.live, node.told.slot) == (Phase.CONVERGED, True, "")
    assert node.told.event is not None
    assert node.told.event.reason is Happening.INSTALLED
    assert node.agent.counters.restarts == 1
    assert node.agent.counters.phases == {"register-handler": 1.5}


def test_the_slot_is_kept_while_the_work_is_done(node: Node) -> None:
    node.looks = [FRESH, FRESH, WELL]
    node.agent.converge()
    node.grant()
    kept: list[str] = []

    def run(argv: Sequence[str], timeout: float) -> Ended:
        if argv[1] == "install":
            kept.append(node.told.slot)
            return DONE
        return node.run(argv, timeout)

    node.agent._run = run
    node.agent.converge()
    assert kept
    assert kept[0]


def test_a_node_that_is_well_is_left_alone(node: Node) -> None:
    node.looks = [WELL]
    assert node.agent.converge() > 600
    assert (node.told.phase, node.told.event, node.called) == (Phase.CONVERGED, None, [])


def test_an_upgrade_needs_no_slot_because_it_restarts_nothing(node: Node) -> None:
    node.looks, node.runs = [UPGRADE, WELL], [Ended(0, {"steps": []})]
    node.agent.converge()
    assert node.told.phase is Phase.CONVERGED
    assert node.told.event is not None
    assert node.told.event.reason is Happening.UPGRADED
    assert node.agent.counters.restarts == 0


def test_drift_is_repaired_and_counted(node: Node) -> None:
    node.looks, node.runs = [DRIFTED, DRIFTED, WELL], [DONE]
    node.agent.converge()
    assert not node.told.live
    node.grant()
    node.agent.converge()
    assert node.told.event is not None
    assert node.told.event.reason is Happening.REPAIRED
    assert node.agent.counters.repairs == 1


@pytest.mark.parametrize(
    ("error", "code", "phase", "reason", "at_least"),
    [
        ("refused", 3, Phase.REFUSED, Reason.REFUSED, 3000),
        ("rolled-back", 4, Phase.FAILED, Reason.ROLLED_BACK, 600),
        ("restart-budget", 5, Phase.FAILED, Reason.BUDGET_SPENT, 300),
        ("busy", 5, Phase.FAILED, Reason.BUSY, 5),
        ("corrupt", 8, Phase.FAILED, Reason.CORRUPT, 60),
        ("outside", 9, Phase.FAILED, Reason.FAILED, 5),
        ("", 137, Phase.FAILED, Reason.BUG, 60),
    ],
)
def test_each_way_to_fail_is_told_and_waits_for_its_time(
    node: Node, error: str, code: int, phase: Phase, reason: Reason, at_least: float
) -> None:
    node.looks, node.runs = [UPGRADE, UPGRADE], [failure(error, code), failure(error, code)]
    first = node.agent.converge()
    assert (node.told.phase, node.told.reason) == (phase, reason)
    assert at_least <= first <= 3600
    assert first <= node.agent.converge() <= 3600


def test_a_failure_gives_the_slot_back(node: Node) -> None:
    node.looks, node.runs = [FRESH, FRESH], [failure("rolled-back", 4)]
    node.agent.converge()
    node.grant()
    node.agent.converge()
    assert node.told.slot == ""
    assert node.told.message == "Because. Do this."
    assert node.agent.counters.rollbacks == 1


def test_a_node_that_cannot_be_supported_is_settled_and_told_once(node: Node) -> None:
    refused = dataclasses.replace(Seen(), error=failure("refused", 3).body)
    node.looks = [refused, refused]
    node.agent.converge()
    first = node.told
    assert first.phase.settled
    assert first.event is not None
    assert first.event.reason is Happening.REFUSED
    node.agent.converge()
    assert node.told == first


def test_wrong_settings_change_nothing_and_are_named(node: Node) -> None:
    (node.settings / "settings.toml").write_text("speed = 3")
    node.agent.converge()
    assert (node.told.reason, node.called) == (Reason.INVALID_SETTINGS, [])
    assert "speed" in node.told.message


def test_a_run_reads_the_settings_where_the_look_has_read_them(node: Node) -> None:
    node.looks, node.runs = [UPGRADE, WELL], [Ended(0, {"steps": []})]
    node.agent.converge()
    assert node.called == [
        [*("flox_node", "install", "--payload", "/payload", "--settings", str(node.settings)), *node.where]
    ]


def test_a_change_of_the_settings_is_noticed_also_from_one_mistake_to_another(node: Node) -> None:
    node.looks = [WELL]
    node.agent.converge()
    assert not node.agent.has_other_settings()
    for text in ("speed = 3", "height = 4", 'platform = "k3s"'):
        (node.settings / "settings.toml").write_text(text)
        assert node.agent.has_other_settings()
        node.looks = [WELL]
        node.agent.converge()
        assert not node.agent.has_other_settings()


@pytest.mark.parametrize(
    ("text", "purge"),
    [("", []), ("purge = true", ["--purge"]), ("purge = true\nspeed = 3", ["--purge"]), ("purge = tru", [])],
)
def test_wrong_settings_keep_nobody_from_an_uninstall(tmp_path: Path, text: str, purge: list[str]) -> None:
    node = Node(tmp_path, "uninstall")
    (node.settings / "settings.toml").write_text(text)
    node.runs = [Ended(0, {"changed": True, "steps": []})]
    node.agent.converge()
    assert node.called == [["flox_node", "uninstall", *purge, *node.where]]
    assert node.told.phase is Phase.UNINSTALLED


def test_an_uninstall_is_an_own_mode_and_asks_nobody(tmp_path: Path) -> None:
    node = Node(tmp_path, "uninstall")
    node.runs = [Ended(0, {"changed": True, "steps": []})]
    node.agent.converge()
    assert node.called[0][1] == "uninstall"
    assert "--force" not in node.called[0]
    assert (node.told.phase, node.told.reason) == (Phase.UNINSTALLED, Reason.UNINSTALLED)


def test_an_uninstall_waits_for_the_pods(tmp_path: Path) -> None:
    node = Node(tmp_path, "uninstall")
    kept = {"outcome": "kept", "reason": "a container runs"}
    node.runs = [failure("in-use", 6), Ended(0, {"changed": True, "steps": [kept]}), Ended(0, {"steps": []})]
    assert node.agent.converge() < 60
    assert node.told.reason is Reason.IN_USE
    assert node.agent.converge() < 60
    assert (node.told.reason, node.told.phase) == (Reason.IN_USE, Phase.FAILED)
    node.agent.converge()
    assert node.told.phase is Phase.UNINSTALLED


def test_what_happened_is_not_told_again_by_a_container_that_was_restarted(node: Node, tmp_path: Path) -> None:
    node.looks, node.runs = [UPGRADE, WELL], [Ended(0, {"steps": []})]
    node.agent.converge()
    event = node.told.event
    again = node.restarted(tmp_path)
    node.looks = [WELL]
    again.converge()
    assert node.told.event == event


def test_a_path_that_was_replaced_is_noticed(node: Node, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.toml").write_text("a")
    files = HostFiles(tmp_path)
    paths = {path: list(fingerprint(files, path)) for path in ("/etc/config.toml", "/etc/gone")}
    node.looks = [dataclasses.replace(WELL, paths=paths, folders=("/etc",))]
    node.agent.converge()
    assert not node.agent.changed()
    (tmp_path / "etc/new").write_text("b")
    (tmp_path / "etc/new").rename(tmp_path / "etc/config.toml")
    assert node.agent.changed()


def test_a_message_has_an_end(node: Node) -> None:
    node.looks, node.runs = [UPGRADE], [Ended(9, {"error": "outside", "cause": "x" * 5000})]
    node.agent.converge()
    assert len(node.told.message) == 1000


def test_a_look_that_says_nothing_of_use_is_a_bug_that_is_told(node: Node) -> None:
    node.looks = [Ended(1)]
    node.agent.converge()
    assert node.told.reason is Reason.BUG


def answers() -> Any:
    from flox_node.agent.serve import Health

    return Health


def test_probes_mean_what_they_say(node: Node) -> None:
    health = answers()(0, ready=lambda: node.agent.state.phase.settled, metrics=lambda: b"m")
    assert health.answer("/healthz")[0] == 200
    assert health.answer("/readyz")[0] == 503
    node.looks = [WELL]
    node.agent.converge()
    assert health.answer("/readyz")[0] == 200
    assert health.answer("/metrics") == (200, b"m")
    assert health.answer("/etc/passwd")[0] == 404
    health.alive_for(-1)
    assert health.answer("/healthz")[0] == 503


def test_the_metrics_name_what_runs_and_what_was_done(node: Node) -> None:
    from flox_node.agent.metrics import exposition

    seen = dataclasses.replace(WELL, platform="plain", gauges={"store_bytes": 5e8, "sandboxes": 2.0})
    node.looks, node.runs = [FRESH, FRESH, seen], [DONE]
    node.agent.converge()
    node.grant()
    node.agent.converge()
    page = exposition(node.agent.state, node.agent.seen, node.agent.counters).decode()
    for line in (
        "flox_node_handler_live 1.0",
        'flox_node_reason{reason="Installed"} 1.0',
        'flox_node_reason{reason="RolledBack"} 0.0',
        "flox_node_restarts_total 1.0",
        'flox_node_install_seconds{action="register-handler"} 1.5',
        "flox_node_store_bytes 5e+08",
        "flox_node_sandboxes 2.0",
    ):
        assert line in page
    assert 'platform="plain"' in page


@pytest.mark.parametrize("full", [{"f_bavail": 9}, {"f_favail": 9, "f_files": 100}], ids=["bytes", "inodes"])
def test_a_store_that_is_nearly_full_starts_the_nodes_collection_at_most_once_an_hour(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: dict[str, int]
) -> None:
    import os
    import types

    free = {"f_bavail": 50, "f_blocks": 100, "f_favail": 50, "f_files": 100}
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(**free))
    node.looks, node.runs = [WELL], [Ended(0)]
    node.agent.converge()
    node.agent.gc_if_full()
    assert node.called == []
    free["f_files"] = free["f_favail"] = 0  # as btrfs, which counts none
    node.agent.gc_if_full()
    assert node.called == []
    free |= full
    node.agent.gc_if_full()
    node.agent.gc_if_full()
    assert node.called == [["flox_node.agent", "gc", str(tmp_path)]]


def test_a_repair_is_told_each_time_and_a_failure_that_repeats_itself_once(node: Node) -> None:
    numbers = []
    for _ in range(2):
        node.looks, node.runs = [UPGRADE, WELL], [Ended(0, {"steps": []})]
        node.agent.converge()
        assert node.told.event is not None
        numbers.append(node.told.event.number)
        time.sleep(0.002)
    assert numbers[0] != numbers[1]
    failed = []
    for _ in range(2):
        node.looks, node.runs = [UPGRADE], [failure("rolled-back", 4)]
        node.agent.converge()
        assert node.told.event is not None
        failed.append(node.told.event.number)
    assert failed[0] == failed[1]


def test_a_node_with_wrong_settings_that_was_never_looked_at_says_so(node: Node) -> None:
    (node.settings / "settings.toml").write_text("speed = 3")
    node.agent.converge()
    assert node.told.identity == ""


class Loop:
    """The waiting between two passes, with no time in it."""

    def __init__(self, node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "_TICK_S", 0.0)
        monkeypatch.setattr(loop, "_SETTLE_S", 0.0)
        self.node, self.file = node, folder / "etc/config.toml"
        self.file.parent.mkdir()
        self.file.write_text("a")
        self.files = HostFiles(folder)
        self.due = time.monotonic() + 3600

    def well(self, **change: Any) -> Seen:
        paths = {"/etc/config.toml": list(fingerprint(self.files, "/etc/config.toml"))}
        return dataclasses.replace(WELL, paths=paths, folders=("/etc",), **change)

    def is_due_after(self, happens: Callable[[], object]) -> bool:
        wake, wakened = os.pipe()
        with FolderWatch() as configuration, FolderWatch() as grants, FolderWatch() as notes:
            configuration.follow(self.node.agent.folders())
            grants.follow([str(self.node.agent.grants)])
            happens()
            try:
                return loop._is_due(self.node.agent, configuration, grants, notes, self.due, wake)
            finally:
                os.close(wake)
                os.close(wakened)


@pytest.fixture
def waiting(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(node, tmp_path, monkeypatch)


def test_a_change_of_what_is_watched_is_a_reason_for_the_next_pass(waiting: Loop) -> None:
    waiting.node.looks = [waiting.well()]
    waiting.node.agent.converge()
    assert not waiting.is_due_after(lambda: None)
    assert waiting.is_due_after(lambda: (waiting.file.parent / "new.toml").write_text("b"))
    assert waiting.is_due_after(lambda: waiting.file.write_text("bc"))


def test_what_the_handler_leaves_for_a_pod_is_passed_on_and_no_reason_for_a_pass(waiting: Loop, tmp_path: Path) -> None:
    waiting.node.looks = [waiting.well()]
    waiting.node.agent.converge()
    notices.tell("ci", "web", "uid-1", notices.FETCHING, "it is fetched", Paths(str(tmp_path)))
    assert not waiting.is_due_after(lambda: None)
    news = exchange.read(waiting.node.own, "pods.json", PodNews)
    assert news is not None
    assert [notice.message for notice in news.notices] == ["it is fetched"]


def test_a_failure_waits_its_time_out_whatever_it_changed(waiting: Loop) -> None:
    waiting.node.looks = [waiting.well(needed=(PLACE,), upgrade=True)]
    waiting.node.runs = [failure("rolled-back", 4)]
    waiting.node.agent.converge()
    assert not waiting.is_due_after(lambda: waiting.file.write_text("what the rollback wrote"))
    waiting.due = time.monotonic()
    assert waiting.is_due_after(lambda: None)


def test_other_settings_end_also_a_failures_time(waiting: Loop) -> None:
    waiting.node.looks = [waiting.well(needed=(PLACE,), upgrade=True)]
    waiting.node.runs = [failure("refused", 3)]
    waiting.node.agent.converge()
    assert waiting.is_due_after(lambda: (waiting.node.settings / "settings.toml").write_text('platform = "k3s"'))


def test_a_grant_is_a_reason_only_for_a_node_that_waits_for_it(waiting: Loop) -> None:
    waiting.node.looks = [waiting.well()]
    waiting.node.agent.converge()
    assert not waiting.is_due_after(lambda: exchange.write(waiting.node.other, "slot.json", Granted("other")))
    waiting.node.looks = [dataclasses.replace(FRESH, folders=("/etc",))]
    waiting.node.agent.converge()
    assert waiting.is_due_after(waiting.node.grant)


def test_the_loop_works_until_it_is_told_to_end_and_begins_nothing_new_then(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_TICK_S", 0.0)
    node.looks, node.runs = [FRESH, FRESH, WELL], [DONE]
    passes: list[Phase] = []
    converge = node.agent.converge

    def counted() -> float:
        seconds = converge()
        passes.append(node.agent.state.phase)
        if node.agent.state.phase is Phase.WAITING:
            node.grant()
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0 if node.agent.state.phase is Phase.WAITING else seconds

    node.agent.converge = counted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert loop.serve(node.agent, port=0) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(-1)
    assert passes == [Phase.WAITING, Phase.CONVERGED]
