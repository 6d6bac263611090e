"""The script that puts a configuration back, for every kind of line that a change is armed with."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.machine import program

SCRIPT = Path(__file__).parents[3] / "installer/flox_node/actions/units/flox-node-rollback.sh"


class Armed:
    """A node's folder with a change that was armed and not confirmed. `calls` is what systemctl was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "var/lib/flox-node"
        self.state.mkdir(parents=True)
        (root / "proc").mkdir()
        programs = root / "programs"
        programs.mkdir()
        systemctl = programs / "systemctl"
        systemctl.write_text(f'#!/bin/sh\necho "$*" >>{root}/calls\n[ "$1" != is-active ]\n')
        systemctl.chmod(0o755)

    def arm(self, *lines: tuple[str, str, str, str]) -> None:
        (self.state / "armed").write_text("".join("\t".join(line) + "\n" for line in lines))

    def write(self, path: str, data: str) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(data)
        return file

    def fire(self, mode: str, shell: str) -> int:
        environment = {"PATH": f"{self.root}/programs:{os.environ['PATH']}"}
        words = [program("busybox"), "sh"] if shell == "busybox" else [shell]
        return subprocess.run([*words, SCRIPT, mode, str(self.root)], env=environment, check=False).returncode

    @property
    def calls(self) -> list[str]:
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def armed(tmp_path: Path) -> Armed:
    return Armed(tmp_path)


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_file_that_was_there_has_its_bytes_again_and_what_was_not_is_gone(armed: Armed, shell: str) -> None:
    root = armed.write("/etc/containerd/config.toml", "ours, and longer than theirs")
    backup = armed.write("/var/lib/flox-node/backups/1", "theirs")
    ours = armed.write("/etc/containerd/conf.d/50-flox-node.toml", "ours")
    armed.arm(
        ("file", str(backup), "644", "/etc/containerd/config.toml"),
        ("gone", "-", "-", "/etc/containerd/conf.d/50-flox-node.toml"),
        ("folder", "-", "-", "/etc/containerd/conf.d"),
    )
    assert armed.fire("boot", shell) == 0
    assert root.read_text() == "theirs"
    assert not ours.exists()
    assert not ours.parent.exists(), "it was made for our file"
    assert not (armed.state / "armed").exists()
    assert not (armed.state / "firing").exists()
    assert "mode=boot" in (armed.state / "last-rollback").read_text()
    assert armed.calls == [], "at boot nothing runs yet, and nothing in /etc/systemd was touched"


def test_a_folder_that_somebody_uses_by_now_stays(armed: Armed, shell: str) -> None:
    theirs = armed.write("/etc/containerd/conf.d/99-theirs.toml", "theirs")
    armed.arm(("folder", "-", "-", "/etc/containerd/conf.d"))
    assert armed.fire("boot", shell) == 0
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("mode", ["boot", "now"])
def test_a_unit_s_drop_in_that_goes_makes_systemd_read_its_files_again(armed: Armed, shell: str, mode: str) -> None:
    ours = armed.write("/etc/systemd/system/containerd.service.d/90-flox-node.conf", "ours")
    armed.arm(
        ("gone", "-", "-", "/etc/systemd/system/containerd.service.d/90-flox-node.conf"),
        ("folder", "-", "-", "/etc/systemd/system/containerd.service.d"),
        ("restart", "-", "-", "containerd.service"),
        ("active", "-", "-", "kubelet.service"),
    )
    assert armed.fire(mode, shell) == 0
    assert not ours.parent.exists()
    assert armed.calls[0] == "daemon-reload", "before anything is started with the old files"
    restarts = [
        "reset-failed containerd.service",
        "restart containerd.service",
        "is-active --quiet kubelet.service",
        "reset-failed kubelet.service",
        "start kubelet.service",
    ]
    assert armed.calls[1:] == (restarts if mode == "now" else [])


def test_what_cannot_be_put_back_stays_armed_for_the_next_boot(armed: Armed, shell: str) -> None:
    ours = armed.write("/etc/containerd/conf.d/50-flox-node.toml", "ours")
    armed.arm(
        ("file", str(armed.state / "backups/lost"), "644", "/etc/containerd/config.toml"),
        ("gone", "-", "-", "/etc/containerd/conf.d/50-flox-node.toml"),
    )
    assert armed.fire("now", shell) == 1
    assert not ours.exists(), "the rest is put back all the same"
    assert (armed.state / "firing").exists()
    assert not (armed.state / "last-rollback").exists()


def test_nothing_armed_is_nothing_to_do(armed: Armed, shell: str) -> None:
    assert armed.fire("now", shell) == 0
    assert armed.calls == []
