"""What a container of the handler costs beside one of runc, call by call over the CRI of one daemon, alternating.

`skipped` is a container that the pod lists in flox.dev/skip-containers: nothing of it is Flox', so it should cost what
runc's costs. What the activation itself takes (Flox' programs, here their double) is told apart from what is ours.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flox_node.environments import grants, roots
from flox_node.environments.index import Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.environments.resolve import system
from flox_node.state.policy import Policy
from tests.bed.cri import Sandbox
from tests.bed.environment import ACTIVATIONS, ENVIRONMENT
from tests.bed.flox_daemon import POLICY, FloxDaemon
from tests.bench.rows import Measurement, Row, ratio, row

ROUNDS, EXECS, PROBES = 50, 2, 200
BURSTS, PODS, AT_ONCE = 5, 50, 10  # a kubelet starts a node's pods with some parallelism
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


def burst() -> Sequence[Row]:
    """The time until the commands of many pods that come at once run, beside as many of runc that do by themselves what
    those of ours do: their activation."""
    samples: dict[str, list[float]] = {"flox": [], "runc": []}
    with FloxDaemon(RELEASE) as daemon:
        daemon.load_images()
        _grant(daemon)
        context = _context(daemon)
        for number in range(BURSTS):
            for kind, into in samples.items():
                started = time.perf_counter()
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    runs = [pool.submit(_run, daemon, kind, f"{number}-{each}", context) for each in range(PODS)]
                    for run in runs:
                        run.result()
                into.append(time.perf_counter() - started)
                for sandbox in daemon.cri.sandboxes():
                    daemon.cri.remove_sandbox(sandbox.id)
    return (
        ratio("burst.warm_total_ratio", samples["flox"], samples["runc"], goal=1.15),
        row("burst.warm_total_s", samples["flox"], unit="s", goal=None),
    )


def _grant(daemon: FloxDaemon) -> None:
    """What the hub granted a moment ago: the first of many pods asks, and the others need not."""
    policy = json.loads((daemon.root / POLICY.lstrip("/")).read_text())
    daemon.write(POLICY, json.dumps({**policy, "realise": {"freshness_s": 3600}}))
    paths = Paths(str(daemon.root))
    resolution = Resolution("demo/hello", 3, "e" * 40, "run", system(), ENVIRONMENT)
    roots.add(resolution.key, resolution.store_path, paths)
    asked = grants.Grant(Policy().git_url, Reference("demo", "hello"), resolution.mode, system(), None)
    grants.record(asked, resolution, paths)


def _context(daemon: FloxDaemon) -> dict[str, Any]:
    """What the shim tells the activation of a container, without anything of ours behind it."""
    pod = daemon.pod()
    container = daemon.cri.run_container(pod, _PLAIN)
    (file,) = (daemon.root / "run/containerd").glob(f"**/{container}/flox-ctx.json")
    context: dict[str, Any] = json.loads(file.read_text())
    context["invocation_type"] = {"execcommand": _PLAIN}
    context["attach_ctx"]["env_cache"] = "/.flox-node"
    daemon.cri.remove_sandbox(pod)
    return context


def _run(daemon: FloxDaemon, kind: str, name: str, context: dict[str, Any]) -> None:
    if kind == "flox":
        container = daemon.cri.run_container(daemon.pod(), _PLAIN)
    else:
        folder = f"/opt/by-hand/{name}"
        daemon.write(f"{folder}/ctx.json", json.dumps(context))
        container = daemon.cri.run_container(
            daemon.pod("runc"),
            [f"{ACTIVATIONS}/bin/flox-activations", "activate", "--activate-data", "/.flox-node/ctx.json"],
            mounts={"/nix": "/nix", "/.flox-node": folder},
            env={"HOME": "/", "PATH": "/bin"},
        )
    _wait_entered(daemon, container)


def _wait_entered(daemon: FloxDaemon, container: str) -> None:
    pid = daemon.cri.container_pid(container)
    while (daemon.root / f"proc/{pid}/comm").read_text() not in ("sleep\n", "busybox\n"):
        time.sleep(0.0005)


def _live(daemon: FloxDaemon, pod: Sandbox, name: str, samples: dict[str, list[float]]) -> None:
    cri = daemon.cri
    with _timed(samples["create_start"]):
        container = cri.create_container(pod, _PLAIN, name=name)
        cri.start(container)
    with _timed(samples["entered"]):
        _wait_entered(daemon, container)
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
    ),
    burst: ("burst.warm_total_ratio", "burst.warm_total_s"),
}
