"""What showing a container its environment's closure costs: on the disk, and while the container is created.

The shim in front of a real runc, as the tests of tests/containerd have it, with environments of 300 store paths and
20,000 files that share 95 %. Beside it the same shim with `pods.view = "store"`, which is one bind mount of all.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bed import environment as bed
from tests.bed import releases
from tests.bench.rows import Measurement, Row, row
from tests.containerd import test_shim_runc as shim

ROUNDS = 50
PATHS, FILES, SHARED = 300, 20_000, 0.95
_FOLDER_FILES = 5  # a folder for so many files
_SECOND = bed.store_path("k", "environment-second-run")
_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"


def create_extra() -> Sequence[Row]:
    """Milliseconds of create beside one bind, and inodes of the node's disk that two environments' containers take."""
    extra: list[float] = []
    second: list[float] = []
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch, _node(Path(scratch)) as node:
        for _ in range(ROUNDS):
            bind = _create_ms(node, bed.ENVIRONMENT, "store")
            extra.append(_create_ms(node, bed.ENVIRONMENT, "closure") - bind)
            second.append(_create_ms(node, _SECOND, "closure") - bind)
        inodes = [_inodes(node, environment) for environment in (bed.ENVIRONMENT, _SECOND)]
    return (
        row("view.create_extra_ms", extra, unit="ms", goal=8),
        row("view.second_create_extra_ms", second, unit="ms", goal=8),
        row("view.inodes_per_environment", [inodes[0]], unit="", goal=600),
        row("view.second_inodes_ratio", [inodes[1] / max(1.0, inodes[0])], unit="ratio", goal=0.1),
    )


@contextmanager
def _node(folder: Path) -> Iterator[shim.Node]:
    node = shim.make_node(folder)
    closures = [list(map(_package, range(PATHS)))]
    closures.append(
        closures[0][: int(PATHS * SHARED)] + [_package(PATHS + i) for i in range(int(PATHS * (1 - SHARED)))]
    )
    made = node.path(bed.ENVIRONMENT)
    subprocess.run(["cp", "-a", made, node.path(_SECOND)], check=True)
    for environment, closure in zip((bed.ENVIRONMENT, _SECOND), closures, strict=True):
        for path in closure:
            _fill(node.path(path))
        with (node.path(environment) / "requisites.txt").open("a") as listed:
            listed.write("".join(f"\n{path}" for path in closure))
    try:
        yield node
    finally:
        node.close()


def _create_ms(node: shim.Node, environment: str, view: str) -> float:
    container = _pod(node, environment, view)
    started = time.perf_counter()
    status = container.create()
    seconds = time.perf_counter() - started
    assert status == 0, container.error
    _remove(node)
    return seconds * 1000


def _inodes(node: shim.Node, environment: str) -> float:
    """How many inodes of the disk are used by a container that was created, beyond those of one with a bind."""
    used = []
    for view in ("store", "closure"):
        container = _pod(node, environment, view)
        before = _count(node.dir)
        assert container.create() == 0, container.error
        used.append(_count(node.dir) - before)
        _remove(node)
    return float(max(0, used[1] - used[0]))


def _count(folder: Path) -> int:
    """The inodes below a folder, not those of mounts below it."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def _pod(node: shim.Node, environment: str, view: str) -> shim.Container:
    node.policy(inner_runtime=str(releases.runc()), pods={"view": view})
    node.resolve(store_path=environment)
    return node.pod("true")


def _remove(node: shim.Node) -> None:
    while node.containers:
        container = node.containers.pop()
        container.call("delete", "--force", container.id)


def _package(number: int) -> str:
    digits = ""
    for _ in range(32):
        number, digit = divmod(number, 32)
        digits = _ALPHABET[digit] + digits
    return f"/nix/store/{digits}-package"


def _fill(package: Path) -> None:
    for number in range(FILES // PATHS):
        folder = package / f"share/{number // _FOLDER_FILES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").touch()


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    create_extra: (
        "view.create_extra_ms",
        "view.second_create_extra_ms",
        "view.inodes_per_environment",
        "view.second_inodes_ratio",
    )
}
