"""Placing a payload, against `cp -a` of the same bytes: 300 MB in 3000 files, alternating, both ending in `sync -f`."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flox_node.host.trees import remove_tree
from flox_node.payload import Payload, open_payload
from flox_node.payload.archive import write_archive
from flox_node.payload.build import Recipe, build
from flox_node.payload.place import place
from flox_node.payload.verify import verify
from tests.bed import cache, store
from tests.bench.rows import Measurement, Row, ratio, row

REVISION = 1
PATHS, FILES, BYTES = 60, 3000, 300_000_000
ROUNDS = 11

_PROJECT = Path(__file__).parents[2]

_CHILD = """
import sys
from pathlib import Path
from flox_node.payload import open_payload
from flox_node.payload.place import place
from tests.bed import store
place(store.host(Path(sys.argv[2])), open_payload(Path(sys.argv[1])))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def place_against_cp() -> Sequence[Row]:
    """Time of placing, and of verifying and placing, over that of `cp -a` of the same store paths."""
    payload = open_payload(_payloads() / "first")
    copied, placed, verified = [], [], []
    for number in range(ROUNDS):
        with _room() as room:
            steps = [lambda: copied.append(_timed(_copy, _payloads() / "first/store", room / "copy"))]
            steps.append(lambda: placed.append(_timed(_place, payload, room / "placed")))
            steps.append(lambda: verified.append(_timed(_verify_and_place, payload, room / "verified")))
            for turn in range(3):
                steps[(turn + number) % 3]()
    return (
        ratio("payload.place_vs_cp_ratio", placed, copied, goal=1.3),
        ratio("payload.verified_vs_cp_ratio", verified, copied, goal=2.0),
        row("payload.place_s", placed, unit="s", goal=None),
        row("payload.cp_s", copied, unit="s", goal=None),
    )


def second_against_first() -> Sequence[Row]:
    """Time of placing a payload that shares 95 % with the one on the node, over that of the first."""
    payloads = [open_payload(_payloads() / name) for name in ("first", "second")]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        with _room() as room:
            for payload, spent in zip(payloads, times, strict=True):
                spent.append(_timed(_place, payload, room / "node"))
    return (ratio("payload.second_vs_first_ratio", times[1], times[0], goal=0.1),)


def peak_memory() -> Sequence[Row]:
    """The most memory that a process needs to place the payload, from its folder and from its archive."""
    peaks = []
    for name in ("first", "first.tar.zst"):
        with _room() as room:
            (room / "node").mkdir()
            command = [sys.executable, "-c", _CHILD, str(_payloads() / name), str(room / "node")]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=_PROJECT)
            peaks.append(float(done.stdout))
    return (row("payload.peak_mib", [max(peaks)], unit="MiB", goal=150),)


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    place_against_cp: (
        "payload.place_vs_cp_ratio",
        "payload.verified_vs_cp_ratio",
        "payload.place_s",
        "payload.cp_s",
    ),
    second_against_first: ("payload.second_vs_first_ratio",),
    peak_memory: ("payload.peak_mib",),
}


def _place(payload: Payload, root: Path) -> None:
    root.mkdir(exist_ok=True)
    place(store.host(root), payload)


def _verify_and_place(payload: Payload, root: Path) -> None:
    verify(payload)
    _place(payload, root)


def _copy(source: Path, destination: Path) -> None:
    subprocess.run(["cp", "-a", source, destination], check=True)


def _timed(work: Callable[..., None], source: object, destination: Path) -> float:
    started = time.monotonic()
    work(source, destination)
    subprocess.run(["sync", "-f", destination.parent], check=True)
    return time.monotonic() - started


@contextmanager
def _room() -> Iterator[Path]:
    """An empty folder on the cache's file system; what was written there before is gone from the disk too."""
    room = Path(tempfile.mkdtemp(prefix="bench-", dir=cache.folder()))
    subprocess.run(["sync", "-f", room], check=True)
    try:
        yield room
    finally:
        remove_tree(room)
        subprocess.run(["sync", "-f", cache.folder()], check=True)


@functools.cache
def _payloads() -> Path:
    """A folder with `first`, `first.tar.zst`, and `second`, which shares 95 % of the bytes with `first`."""
    recipe = {"paths": PATHS, "files": FILES, "bytes": BYTES, "store": store.base().root.name, "revision": REVISION}
    return cache.artefact("bench-payloads", recipe, _build_payloads)


def _build_payloads(folder: Path) -> None:
    changed = PATHS * 5 // 100
    for name, generations in (("first", [0] * PATHS), ("second", [0] * (PATHS - changed) + [1] * changed)):
        root = folder / "root"
        builder = store.extended(root, store.base())
        for number, generation in enumerate(generations):
            content = functools.partial(_content, seed=f"{number}.{generation}")
            builder.add(f"package-{number}", f"package-{number}", [REVISION, number, generation], content)
        made = builder.finish()
        packages = tuple(made.paths[f"package-{number}"] for number in range(PATHS))
        shim = root / "shim"
        shim.write_bytes(b"no shim\n")
        recipe = Recipe(root, {"nix-store": made.nix_store}, shim, version="0", extra_paths=packages)
        build(recipe, folder / name)
        remove_tree(root)
    write_archive(folder / "first", folder / "first.tar.zst")


def _content(out: Path, _path: str, *, seed: str) -> None:
    """Files as a package has them: many small ones and a few large ones; half of each can be compressed."""
    chance = random.Random(seed)
    count = FILES // PATHS
    weights = [chance.lognormvariate(0, 1.6) for _ in range(count)]
    for number, weight in enumerate(weights):
        size = int(BYTES / PATHS * weight / sum(weights))
        file = out / f"share/part-{number % 7}/file-{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chance.randbytes(size // 2) + b"text that compresses well. " * (size // 54))
        file.chmod(0o755 if number % 10 == 0 else 0o644)
