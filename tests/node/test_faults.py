"""Whatever goes wrong in an install, the node serves what it served before, with no human: see docs/faults.md.

The faults are real: wrong bytes on the disk, kills, full disks, power cuts, on a node with a pod and a kubelet that is
bound to containerd as on EKS.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bed.cri import CriError
from tests.bed.pod import HOST_ROOT
from tests.conftest import FULL

CONFIG = "etc/containerd/config.toml"
STATE = "var/lib/flox-node"
DEADLINE_S = 10
"""For what waits for the deadline to pass. The rest has a node's own, so that a busy machine does not meet it."""
DEADLINE_TIMER = "flox-node-deadline.timer"
NODES_DEADLINE_S = 60
WITHIN_S = 90
HANGING = "sleep 1000 "
"""What the fault `shim-hangs` becomes."""


class Node:
    """A node with a pod of the default handler, and what must not change of it."""

    def __init__(self, box: NodeBox) -> None:
        self.box = box
        sandbox = box.cri.run_sandbox("runc", name="before")
        self.container = box.cri.run_container(sandbox, ["sleep", "36000"])
        self.pid = box.cri.container_pid(self.container)
        self.config = self.read_config()

    def read_config(self) -> bytes:
        return (self.box.root / CONFIG).read_bytes()

    def install(
        self, faults: str = "", *more: str, deadline_s: int = NODES_DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        words = [*flox.installation(), "--deadline", str(deadline_s), *more]
        if not faults:
            return flox.flox_node(self.box, *words, check=False)
        program = [sys.executable, "-m", "tests.node.faulty", faults]
        return flox.beside(self.box, *program, *words, "--host-root", HOST_ROOT)

    def has_a_deadline(self) -> bool:
        """Whether systemd still has a timer, or what it starts, of a change."""
        return bool(self.box.run("systemctl list-units --all --no-legend 'flox-node-deadline*'").stdout)

    def is_armed(self) -> bool:
        return any((self.box.root / STATE / name).exists() for name in ("armed", "firing"))

    def hanging(self) -> list[str]:
        """The node's processes that ask a shim for its features, and the shim that hangs in them."""
        commands = []
        for file in (self.box.root / "proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                commands.append(file.read_text().replace("\0", " "))
        return [command for command in commands if " -info " in command or command == HANGING]

    def must_have_nothing_that_hangs(self) -> None:
        started = time.monotonic()
        while found := self.hanging():
            assert time.monotonic() < started + WITHIN_S, found
            time.sleep(0.1)

    def serves(self, *handlers: str, rebooted: bool = False) -> bool:
        """Whether the handlers are served, the kubelet runs, nothing is pending and the old pod still runs."""
        box = self.box
        try:
            if not {"runc", *handlers} <= set(box.cri.handlers()) or self.is_armed():
                return False
            if not rebooted and box.cri.exec(self.container, "echo", "alive").stdout != "alive\n":
                return False
        except (CriError, OSError):
            return False
        return bool(box.main_pid("kubelet.service"))

    def must_be_unhurt(self, *, rebooted: bool = False, config: bytes | None = None) -> float:
        """Wait for the former state; how long it took, in seconds."""
        started = time.monotonic()
        while not self.serves(rebooted=rebooted):
            assert time.monotonic() < started + WITHIN_S, self.box.logs()
            time.sleep(0.1)
        took = time.monotonic() - started
        if not rebooted:
            assert self.box.cri.container_pid(self.container) == self.pid
        assert self.read_config() == (self.config if config is None else config)
        pod = self.box.cri.run_sandbox("runc", name="after")
        self.box.cri.remove_sandbox(pod)
        return took

    def must_become_a_flox_node(self) -> None:
        """The next install, with no fault, finishes what the faulty one began."""
        done = self.install()
        assert done.returncode == 0, done.stderr
        assert self.serves("flox")


@pytest.fixture(params=("1.7", "2.1") if FULL else ("2.1",), ids=lambda release: f"containerd-{release}")
def node(request: pytest.FixtureRequest, node_box: Callable[..., NodeBox]) -> Node:
    return Node(node_box(request.param))


@pytest.fixture
def node_2(node_box: Callable[..., NodeBox]) -> Node:
    """A node whose containerd asks a handler's binary for its features."""
    return Node(node_box("2.1"))


# what the new configuration or the shim does to containerd


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("bad-config", "could not carry out RestartUnit"),
        ("without-cri", "CRI does not answer"),
        ("changed-handler", "lost or changed the handler runc"),
    ],
)
def test_a_configuration_that_containerd_does_not_work_with_is_taken_back(node: Node, fault: str, says: str) -> None:
    # Without the CRI, it is waited for until the deadline.
    done = node.install(fault, deadline_s=DEADLINE_S if fault == "without-cri" else NODES_DEADLINE_S)
    assert done.returncode == 4, done.stderr
    assert says in done.stderr
    assert "The old configuration is live again" in done.stderr
    node.must_be_unhurt()
    node.must_become_a_flox_node()


def test_a_shim_that_does_not_start_is_found_before_the_restart(node: Node) -> None:
    pid = node.box.main_pid("containerd.service")
    done = node.install("shim-broken-before-the-proof")
    assert done.returncode == 3, done.stderr
    assert "flox-runtime does not run on this node" in done.stderr
    assert node.box.main_pid("containerd.service") == pid
    node.must_be_unhurt()
    node.must_become_a_flox_node()


def test_a_shim_that_hangs_is_found_before_the_restart(node: Node) -> None:
    pid = node.box.main_pid("containerd.service")
    done = node.install("shim-hangs-before-the-proof")
    assert done.returncode == 3, done.stderr
    assert "did not end within" in done.stderr
    assert node.box.main_pid("containerd.service") == pid
    node.must_be_unhurt()


def test_a_shim_that_fails_only_under_containerd_is_taken_back(node_2: Node) -> None:
    done = node_2.install("shim-broken")
    assert done.returncode == 4, done.stderr
    assert "could not ask /opt/flox-node/bin/flox-runtime for its features" in done.stderr
    node_2.must_be_unhurt()


@pytest.mark.parametrize("killed", [False, True], ids=["by-the-command", "by-the-timer"])
def test_a_shim_that_keeps_the_cri_down_by_hanging_is_taken_back_and_ended(node_2: Node, killed: bool) -> None:
    done = node_2.install("shim-hangs,kill-during-restart" if killed else "shim-hangs", deadline_s=2 * DEADLINE_S)
    assert done.returncode == (137 if killed else 4), done.stderr
    while killed and HANGING not in node_2.hanging():
        assert node_2.is_armed(), "the shim did not hang"
        time.sleep(0.1)
    node_2.must_be_unhurt()
    node_2.must_have_nothing_that_hangs()


# the command is killed


@pytest.mark.parametrize("moment", ["before", "during", "after"] if FULL else ["during"])
@pytest.mark.parametrize("candidate", ["good", "bad-config", "without-cri"] if FULL else ["without-cri"])
def test_a_command_killed_around_the_restart_is_undone_by_the_node_itself(
    node: Node, moment: str, candidate: str
) -> None:
    kill = f"kill-{moment}-restart"
    started = time.monotonic()
    done = node.install(kill if candidate == "good" else f"{candidate},{kill}", deadline_s=DEADLINE_S)
    assert done.returncode == 137, done.stderr
    assert node.is_armed()
    node.must_be_unhurt()
    assert time.monotonic() - started > DEADLINE_S, "it was the timer"
    assert "mode=now" in (node.box.root / STATE / "last-rollback").read_text()
    node.must_become_a_flox_node()


def test_a_command_killed_after_the_confirmation_leaves_what_it_confirmed(node: Node) -> None:
    done = node.install("kill-after-confirmation", deadline_s=2 * DEADLINE_S)
    assert done.returncode == 137, done.stderr
    assert node.has_a_deadline()
    while node.has_a_deadline():
        time.sleep(0.1)
    assert node.serves("flox"), "the timer came, and found nothing to undo"
    node.must_become_a_flox_node()


def test_a_command_that_hangs_is_undone_and_learns_it(node: Node) -> None:
    done = node.install("hang-before-restart", deadline_s=DEADLINE_S)
    assert done.returncode == 4, done.stderr
    node.must_be_unhurt()


def test_the_next_command_undoes_a_killed_one_at_once_and_goes_on(node: Node) -> None:
    assert node.install("bad-config,kill-during-restart").returncode == 137
    started = time.monotonic()
    node.must_become_a_flox_node()
    assert time.monotonic() - started < NODES_DEADLINE_S, "and not when the deadline of the killed one had passed"
    assert not node.has_a_deadline()


# the power is cut


@pytest.mark.parametrize("moment", ["before", "during", "after"] if FULL else ["during"])
def test_a_power_cut_with_a_bad_configuration_on_the_disk_is_undone_at_boot(node: Node, moment: str) -> None:
    assert node.install(f"bad-config,kill-{moment}-restart").returncode == 137
    assert node.read_config() != node.config
    node.box.reboot()
    node.must_be_unhurt(rebooted=True)
    assert "mode=boot" in (node.box.root / STATE / "last-rollback").read_text()


@pytest.mark.timeout(3600 if FULL else 900)
def test_a_power_cut_at_any_journal_entry_leaves_a_node_that_serves(node_box: Callable[..., NodeBox]) -> None:
    node = Node(node_box("1.7"))
    box = node.box
    step = 1 if FULL else 7
    for at in range(1, 200, step):
        words = [str(at), *flox.installation(), "--host-root", HOST_ROOT]
        done = flox.beside(box, sys.executable, "-m", "tests.node.killed", *words)
        if done.returncode == 0:
            break
        assert done.returncode == 137, done.stderr
        # At the very last entry the change is confirmed already, and what was confirmed stays.
        confirmed = not node.is_armed() and b"runtimes.flox" in node.read_config()
        kept = node.read_config() if confirmed else node.config
        box.reboot()
        node.must_be_unhurt(rebooted=True, config=kept)
        assert ("flox" in box.cri.handlers()) is confirmed
        flox.flox_node(box, "uninstall", "--purge")
    assert at > 15
    assert "flox" in box.cri.handlers()


# the disk


def test_a_bind_mounted_configuration_is_written_and_taken_back_in_place(node: Node) -> None:
    box = node.box
    box.run(f"cp /{CONFIG} /root/config.toml && mount --bind /root/config.toml /{CONFIG}")
    done = node.install("bad-config")
    assert done.returncode == 4, done.stderr
    node.must_be_unhurt()
    assert node.install("bad-config,kill-during-restart", deadline_s=DEADLINE_S).returncode == 137
    node.must_be_unhurt()
    node.must_become_a_flox_node()
    flox.flox_node(box, "uninstall")
    assert node.read_config() == node.config


@pytest.mark.parametrize("folder", ["/etc/containerd", "/var/lib/flox-node"])
def test_a_full_disk_stops_the_install_and_nothing_else(node: Node, folder: str) -> None:
    box, name = node.box, "/root/copy"
    pid = box.main_pid("containerd.service")
    box.run(f"mkdir -p {folder} {name}; cp -a {folder}/. {name}; mount -t tmpfs -o size=16k tmpfs {folder}")
    box.run(
        f"cp -a {name}/. {folder}; chmod 700 /var/lib/flox-node 2>/dev/null; head -c 1M /dev/zero >{folder}/fill",
        check=False,
    )
    done = node.install()
    assert done.returncode in (3, 9), done.stderr
    assert "No space left" in done.stderr or "free" in done.stderr
    node.must_be_unhurt()
    assert box.main_pid("containerd.service") == pid
    box.run(f"rm {folder}/fill; mount -o remount,size=4m {folder}")
    node.must_become_a_flox_node()


def test_a_full_disk_does_not_keep_the_old_configuration_from_coming_back(node: Node) -> None:
    box = node.box
    box.run("cp -a /etc/containerd /root/copy; mount -t tmpfs -o size=64k tmpfs /etc/containerd")
    box.run("cp -a /root/copy/. /etc/containerd")
    assert node.install("bad-config,kill-during-restart", deadline_s=DEADLINE_S).returncode == 137
    box.run("head -c 1M /dev/zero >/etc/containerd/fill", check=False)
    node.must_be_unhurt()


def test_a_read_only_file_system_stops_the_install_and_nothing_else(node: Node) -> None:
    box = node.box
    pid = box.main_pid("containerd.service")
    box.run("mount --bind /etc/containerd /etc/containerd && mount -o remount,ro,bind /etc/containerd")
    done = node.install()
    assert done.returncode in (3, 9), done.stderr
    assert "ead-only" in done.stderr
    node.must_be_unhurt()
    assert box.main_pid("containerd.service") == pid
    box.run("umount /etc/containerd")
    node.must_become_a_flox_node()


# others on the node


def test_a_second_command_at_the_same_time_is_told_so(node: Node) -> None:
    box = node.box
    box.run("mkdir -p /run/flox-node/locks")
    holder = box.popen(["flock", "--no-fork", "/run/flox-node/locks/install.lock", "sleep", "60"])
    while box.run(["flock", "--nonblock", "/run/flox-node/locks/install.lock", "true"], check=False).returncode == 0:
        time.sleep(0.05)
    done = node.install()
    assert done.returncode == 5, done.stderr
    assert "Another run of flox-node holds" in done.stderr
    box.kill(holder)
    node.must_be_unhurt()


def test_another_writer_before_ours_is_taken_in(node: Node) -> None:
    done = node.install("rival-before-the-write")
    assert done.returncode == 0, done.stderr
    assert node.serves("flox")
    assert b"# by somebody else\n" in node.read_config()


def test_another_writer_after_ours_keeps_what_it_wrote(node: Node) -> None:
    done = node.install("rival-after-the-write")
    assert done.returncode == 4, done.stderr
    assert "does not serve the handler flox" in done.stderr
    assert b"# by somebody else\n" in node.read_config()
    node.must_be_unhurt(config=node.read_config())


# the service manager and the clock


def test_without_a_system_bus_nothing_is_written(node: Node) -> None:
    box = node.box
    box.run("systemctl stop dbus.socket dbus.service; rm -f /run/dbus/system_bus_socket")
    done = node.install()
    assert done.returncode == 3, done.stderr
    assert "cannot reach it" in done.stderr
    assert not (box.root / "opt/flox-node").exists()
    assert not (box.root / STATE).exists()
    node.must_be_unhurt()


def test_a_system_bus_that_goes_away_in_the_middle_keeps_nobody_from_undoing(node: Node) -> None:
    done = node.install("bus-gone,bad-config", deadline_s=DEADLINE_S)
    assert done.returncode == 4, done.stderr
    node.must_be_unhurt()


def test_a_clock_that_jumps_neither_confirms_nor_undoes(node: Node) -> None:
    """The machine's own clock is everybody's here, so it is the command's that jumps; systemd's timer is looked at."""
    assert node.install("clock-jumps,kill-before-restart", deadline_s=2 * DEADLINE_S).returncode == 137
    shown = node.box.run(
        f"systemctl show {DEADLINE_TIMER} --property=TimersCalendar,NextElapseUSecRealtime,TimersMonotonic"
    ).stdout
    assert f"OnActiveUSec={2 * DEADLINE_S}s" in shown
    assert "NextElapseUSecRealtime=\n" in shown
    assert "OnCalendar" not in shown
    node.must_be_unhurt()
    assert node.install("clock-jumps").returncode == 0
    assert not node.is_armed()


# what a restart would do to pods, or too often


@pytest.mark.parametrize("mode", ["control-group", "mixed"])
def test_a_unit_whose_restart_kills_pods_is_refused_and_its_file_named(node: Node, mode: str) -> None:
    node.box.write("etc/systemd/system/containerd.service.d/10-kill.conf", f"[Service]\nKillMode={mode}\n")
    node.box.run("systemctl daemon-reload")
    done = node.install()
    assert done.returncode == 3, done.stderr
    assert f"KillMode={mode}" in done.stderr
    assert "10-kill.conf" in done.stderr
    assert not (node.box.root / "opt/flox-node").exists()
    node.must_be_unhurt()


def test_a_restart_that_fails_with_a_unit_that_containerd_requires_names_that_unit(node: Node) -> None:
    """As EKS' FastImagePull has it: a snapshotter without which containerd is not to start."""
    soci = "[Service]\nType=oneshot\nExecStart=/bin/sh -c '[ ! -e /run/soci-is-broken ]'\n"
    needs = "[Unit]\nRequires=soci-snapshotter.service\nAfter=soci-snapshotter.service\n"
    node.box.write("etc/systemd/system/soci-snapshotter.service", soci)
    node.box.write("etc/systemd/system/containerd.service.d/10-soci-snapshotter.conf", needs)
    node.box.run("systemctl daemon-reload")
    node.box.write("run/soci-is-broken", "")
    done = node.install()
    assert done.returncode not in (0, 1), done.stderr
    assert "soci-snapshotter.service failed, which it requires" in done.stderr
    node.box.run("rm /run/soci-is-broken")  # and the way back, which tries again and again, brings containerd up
    node.must_be_unhurt()


def test_a_unit_that_was_changed_but_not_read_is_refused(node: Node) -> None:
    node.box.write("etc/systemd/system/containerd.service.d/10-more.conf", "[Service]\nEnvironment=A=b\n")
    done = node.install()
    assert done.returncode == 3, done.stderr
    assert "daemon-reload" in done.stderr


def test_the_budget_of_restarts_is_kept_and_a_start_limit_is_no_obstacle(node: Node) -> None:
    for _ in range(4):
        node.box.run("systemctl restart containerd")
    node.box.cri.wait_ready()
    assert node.install("bad-config").returncode == 4, "its two restarts are the fifth and sixth within ten seconds"
    assert node.install().returncode == 0
    (node.box.root / CONFIG).write_bytes(node.config)
    done = node.install("", "--restarts-per-hour", "1")
    assert done.returncode == 5, done.stderr
    assert "restarted 1 times by flox-node within the last hour" in done.stderr
    told = json.loads(flox.flox_node(node.box, "status", "--json", check=False).stdout)
    assert told["drift"]
