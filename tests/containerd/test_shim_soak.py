"""Many calls and many pods one after another: what is ours on the node is afterwards what it was before."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.bed.environment import ENVIRONMENT
from tests.bed.flox_daemon import FloxDaemon
from tests.conftest import FULL

EXECS, PODS = (10_000, 1_000) if FULL else (100, 10)


@pytest.fixture(scope="module")
def daemon(bed: object) -> Iterator[FloxDaemon]:
    with FloxDaemon("2.1") as daemon:
        daemon.load_images()
        yield daemon


def left(daemon: FloxDaemon) -> dict[str, object]:
    """What could grow: our files and their bytes, and the machine's mounts, cgroups and processes."""
    files = {path: size for path, size in daemon.state().items() if not path.endswith("log.json")}
    counts = ("cat /proc/self/mounts", "find /sys/fs/cgroup -type d", "ls -d /proc/[0-9]*", "ls /tmp")
    counted = daemon.run("; ".join(f"{count} | wc -l" for count in counts)).stdout.split()
    return {"files": files, "mounts, cgroups, processes, temporary files": counted}


def settled(daemon: FloxDaemon, expected: dict[str, object]) -> dict[str, object]:
    """What is left once the daemon has reaped what ended."""
    until = time.monotonic() + 30
    while (found := left(daemon)) != expected and time.monotonic() < until:
        time.sleep(0.2)
    return found


def test_execs_one_after_another_leave_nothing(daemon: FloxDaemon) -> None:
    container = daemon.cri.run_container(daemon.pod(), ["env", "-i", f"{ENVIRONMENT}/bin/sleep", "600000"])
    assert daemon.cri.exec(container, "sh", "-c", "echo $HOOKED").stdout == "yes\n"
    before = left(daemon)
    for _ in range(EXECS):
        assert daemon.cri.exec(container, "sh", "-c", "echo $HOOKED").stdout == "yes\n"
    assert settled(daemon, before) == before
    for sandbox in daemon.cri.sandboxes():
        daemon.cri.remove_sandbox(sandbox.id)


def test_pods_one_after_another_leave_nothing(daemon: FloxDaemon) -> None:
    def live(number: int) -> None:
        pod = daemon.pod(skip_containers="plain")
        main = daemon.cri.run_container(pod, ["sleep", "600"])
        daemon.cri.run_container(pod, ["sleep", "600"], name="plain")
        assert daemon.cri.exec(main, "hello").exit_code == 0
        if number % 2:  # the kubelet stops and removes containers one by one, or the sandbox with all of them
            daemon.cri.stop(main)
            daemon.cri.remove(main)
        daemon.cri.remove_sandbox(pod)

    live(0)
    before = left(daemon)
    for number in range(PODS):
        live(number)
    assert settled(daemon, before) == before
