"""`make cluster` leaves a cluster running, and `make cluster-down` leaves nothing of it."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.bed import cache
from tests.cluster import background
from tests.conftest import FULL


@pytest.fixture
def name(bed: Path) -> Generator[str]:
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    yield name
    background.down(name)


def command(name: str, *arguments: str) -> str:
    words = [sys.executable, "-m", "tests.cluster", "--name", name, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def traces(scopes: list[str]) -> dict[str, list[str]]:
    """What this machine still has of the scopes, by kind."""
    processes, mounts = [], set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cgroups, table = (process / "cgroup").read_text(), (process / "mountinfo").read_text()
        except (OSError, ProcessLookupError):  # it has ended meanwhile
            continue
        processes += [process.name for name in scopes if name in cgroups]
        mounts |= {line for line in table.splitlines() for name in scopes if name in line}
    return {
        "processes": processes,
        "mounts": sorted(mounts),
        "namespaces": [name for name in scopes if (Path("/run/netns") / name).exists()],
        "cgroups": [str(path) for name in scopes for path in Path("/sys/fs/cgroup").glob(f"*/{name}")],
        "folders": [path.name for path in (cache.folder() / "running").iterdir() if path.stem in scopes],
    }


def test_a_cluster_outlives_its_command_and_leaves_nothing_when_it_is_taken_down(name: str) -> None:
    before = interfaces()

    command(name, "up")

    state = background.running(name)
    assert state is not None
    assert command(name, "kubectl", "get", "nodes", "--output=name") == "node/worker-1\nnode/worker-2\n"
    command(name, "up")  # keeps the one that runs
    assert background.running(name) == state
    assert all(traces(state["scopes"]).values())

    command(name, "down")

    assert not any(traces(state["scopes"]).values())
    assert interfaces() == before
    assert background.running(name) is None
    command(name, "down")


@pytest.mark.skipif(not FULL, reason="part of make test-full")
def test_a_cluster_whose_owner_was_killed_is_removed_by_the_same_command(name: str) -> None:
    command(name, "up")
    state = background.running(name)
    assert state is not None

    os.kill(state["pid"], signal.SIGKILL)
    command(name, "down")

    assert not any(traces(state["scopes"]).values())
