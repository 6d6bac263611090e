"""Finding the process behind a socket, from procfs alone."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from flox_node.errors import OutsideError
from flox_node.host import Processes
from flox_node.host.processes import unit_of
from tests.bed.processes import has_ended, wait_ended


def test_the_listener_of_a_socket_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert Processes().socket_owner(path) is None, "bound is not yet listening"
        listener.listen()
        owner = Processes().socket_owner(path)
    assert owner is not None
    assert owner.pid == os.getpid()
    assert owner.exe == os.readlink("/proc/self/exe")


def test_a_client_of_a_socket_is_not_its_owner(tmp_path: Path) -> None:
    assert Processes().socket_owner(str(tmp_path / "nobody.sock")) is None


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/containerd.service\n", "containerd.service"),
        ("0::/runtime.slice/containerd.service\n", "containerd.service"),
        ("1:name=systemd:/box/payload/system.slice/k3s-agent.service\n0::/\n", "k3s-agent.service"),
        ("0::/system.slice/snap.microk8s.daemon-containerd.service\n", "snap.microk8s.daemon-containerd.service"),
        ("0::/docker/abc/system.slice/containerd.service/init\n", "containerd.service"),
        ("4:memory:/system.slice/other.service\n0::/user.slice\n", None),
    ],
)
def test_the_unit_is_read_from_the_systemd_hierarchy(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit


def test_a_program_that_hangs_is_given_up() -> None:
    with pytest.raises(OutsideError, match="did not end within"):
        Processes().run(["sleep", "30"], timeout=0.2)


def test_a_program_can_be_started_before_its_input_is_known() -> None:
    with Processes().started(["cat"]) as finish:
        assert finish(b"late").stdout == b"late"


def test_a_program_that_gets_no_input_is_ended_and_has_got_none(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/pid; read -r line && touch {tmp_path}/got"
    with Processes().started(["sh", "-c", script]):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
    assert has_ended(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "got").exists()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(OutsideError, match="/no/such/tool cannot be started"):
        Processes().run(["/no/such/tool"])


def test_a_program_runs_with_an_almost_empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOX_FLOXHUB_TOKEN", "secret")
    done = Processes().run(["/usr/bin/env"])
    assert sorted(line.split(b"=")[0] for line in done.stdout.splitlines()) == [b"LC_ALL", b"PATH"]


def test_a_large_input_and_a_large_output_do_not_wait_for_each_other() -> None:
    data = bytes(range(256)) * 8192
    assert Processes().run(["cat"], input=data).stdout == data


def test_a_program_that_reads_no_input_is_no_failure() -> None:
    assert Processes().run(["true"], input=b"x" * (1 << 20)).returncode == 0


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    Processes().run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid"])
    assert wait_ended(int((tmp_path / "pid").read_text()), 20)
