"""Installing and uninstalling a node again and again: nothing adds up."""

from __future__ import annotations

import pytest

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.conftest import FULL
from tests.node.tree import tree

CYCLES = 20 if FULL else 3


def _traces(box: NodeBox) -> dict[str, set[str]]:
    """What a tree of files does not show: units that systemd knows, mounts, programs, state of this boot."""
    units = box.run("systemctl list-units --all --no-legend --plain; systemctl list-unit-files --no-legend").stdout
    programs = box.run("for p in /proc/[0-9]*; do readlink $p/exe; done", check=False).stdout
    return {
        "units": {line.split()[0] for line in units.splitlines() if "flox" in line or "nix" in line},
        "mounts": {line.split()[4] for line in box.run("cat /proc/1/mountinfo").stdout.splitlines()},
        "programs": {line for line in programs.splitlines() if "flox" in line or "/nix/" in line},
        "handlers": set(box.cri.handlers()),
        "images": set(box.ctr("images", "list", "--quiet").split()),
        "failed": set(box.run("systemctl list-units --failed --no-legend --plain").stdout.split()),
    }


@pytest.mark.timeout(300 + CYCLES * 120)
@pytest.mark.parametrize("release", ("1.7", "2.1") if FULL else ("2.1",))
def test_cycles_of_install_and_purge_leave_the_node_as_it_was(release: str) -> None:
    with NodeBox(release) as box:
        pod = box.cri.run_sandbox("runc")
        container = box.cri.run_container(pod, ["sleep", "3600"])
        pid = box.cri.container_pid(container)
        before, traces = tree(box), _traces(box)
        for cycle in range(CYCLES):
            flox.install(box)
            assert "flox" in box.cri.handlers()
            flox.flox_node(box, "uninstall", "--purge")
            assert tree(box) == before, f"after cycle {cycle + 1}"
            assert _traces(box) == traces, f"after cycle {cycle + 1}"
        assert box.cri.container_pid(container) == pid
        assert flox.flox_node(box, "status").returncode == 0
