"""What a container of the handler costs beside one of runc, call by call over the CRI of one daemon, alternating.

`skipped` is a container that the pod lists in flox.dev/skip-containers: nothing of it is Flox', so it should cost what
runc's costs. What the activation itself takes (Flox' programs, here their double) is told apart from what is ours.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bed.cri import Sandbox
from tests.bed.flox_daemon import FloxDaemon
from tests.bench.rows import Measurement, Row, ratio, row

ROUNDS, EXECS, PROBES = 50, 2, 200
RELEASE = "2.1"
_PLAIN = ["/bin/sleep", "600"]

Samples = dict[str, dict[str, list[float]]]  # kind of container -> call -> milliseconds


def lifecycle() -> Sequence[Row]:
    """Ratios and milliseconds of create, start, exec, kill and delete; KiB and bytes that a container of ours adds."""
    with FloxDaemon(RELEASE) as daemon:
        daemon.load_images()
        pods = {"runc": daemon.pod("runc"), "skipped": daemon.pod(skip_containers="*"), "flox": daemon.pod()}
        samples: Samples = defaultdict(lambda: defaultdict(list))
        for number in range(ROUNDS):
            for kind, pod in pods.items():
                _live(daemon, pod, f"main{number}", samples[kind])
        growth = _growth(daemon, pods["flox"])
    runc, skipped, flox = samples["runc"], samples["skipped"], samples["flox"]
    # From the start's answer to the command: the same for runc is the time that the command itself takes to be seen.
    activation = [ours - theirs for ours, theirs in zip(flox["entered"], runc["entered"], strict=True)]
    extra = [ours - theirs for ours, theirs in zip(flox["create_start"], runc["create_start"], strict=True)]
    memory = [ours - theirs for ours, theirs in zip(flox["memory"], runc["memory"], strict=True)]
    return (
        *(
            ratio(f"cri.skipped.{call}_ratio", skipped[call], runc[call], goal=1.10)
            for call in ("create_start", "exec", "kill", "delete")
        ),
        ratio("cri.flox.exec_ratio", flox["exec"], runc["exec"], goal=1.15),
        ratio("cri.flox.stop_ratio", flox["kill"], runc["kill"], goal=1.10),
        row("cri.flox.create_start_extra_ms", extra, unit="ms", goal=10.0),
        row("cri.flox.activation_ms", activation, unit="ms", goal=None),
        row("pod.memory_extra_kib", memory, unit="KiB", goal=512.0),
        row("exec.state_growth_bytes", [growth], unit="bytes", goal=0.0),
    )


def _live(daemon: FloxDaemon, pod: Sandbox, name: str, samples: dict[str, list[float]]) -> None:
    cri = daemon.cri
    with _timed(samples["create_start"]):
        container = cri.create_container(pod, _PLAIN, name=name)
        cri.start(container)
    pid = cri.container_pid(container)
    with _timed(samples["entered"]):
        while (daemon.root / f"proc/{pid}/comm").read_text() not in ("sleep\n", "busybox\n"):
            time.sleep(0.0005)
    for _ in range(EXECS):
        into: list[float] = []
        with _timed(into):
            assert cri.exec(container, "/bin/true").exit_code == 0
    samples["exec"].append(into[0])  # the last one: the first reads what the daemon has not read yet
    samples["memory"].append(_memory(daemon, container))
    with _timed(samples["kill"]):
        cri.stop(container)
    with _timed(samples["delete"]):
        cri.remove(container)


@contextlib.contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    into.append((time.perf_counter() - started) * 1000)


def _memory(daemon: FloxDaemon, container: str) -> float:
    """KiB that the container's cgroup is charged for, without what the page cache can give back."""
    for file in (daemon.root / "sys/fs/cgroup").glob(f"memory/**/{container}/memory.stat"):
        fields = dict(line.split() for line in file.read_text().splitlines())
        return (int(fields["total_rss"]) + int(fields.get("total_shmem", 0))) / 1024
    for file in Path("/sys/fs/cgroup").glob(f"**/{container}/memory.stat"):
        fields = dict(line.split() for line in file.read_text().splitlines())
        return (int(fields.get("total_rss", fields.get("anon", 0))) + int(fields.get("shmem", 0))) / 1024
    raise RuntimeError(f"no memory cgroup of {container}")


def _growth(daemon: FloxDaemon, pod: Sandbox) -> float:
    """Bytes of files that so many execs leave in what is ours, the daemon's own log of a container aside."""
    container = daemon.cri.run_container(pod, _PLAIN, name="probed")
    while daemon.cri.exec(container, "/bin/sh", "-c", "[ -n $HOOKED ]").exit_code:
        time.sleep(0.01)
    before = _state(daemon)
    for _ in range(PROBES):
        daemon.cri.exec(container, "/bin/true")
    return float(_state(daemon) - before)


def _state(daemon: FloxDaemon) -> int:
    return sum(size for path, size in daemon.state().items() if not path.endswith("log.json"))


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    lifecycle: (
        "cri.skipped.create_start_ratio",
        "cri.skipped.exec_ratio",
        "cri.skipped.kill_ratio",
        "cri.skipped.delete_ratio",
        "cri.flox.exec_ratio",
        "cri.flox.stop_ratio",
        "cri.flox.create_start_extra_ms",
        "cri.flox.activation_ms",
        "pod.memory_extra_kib",
        "exec.state_growth_bytes",
    )
}
