"""How looking at a node grows with what is on it: `flox-node status` alternating between a node box with some
thirty store paths and one with 20,000 and with 300 environments."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tests.bed import flox
from tests.bed.box import NodeBox
from tests.bench.rows import Measurement, Row, ratio, row

ROUNDS = 9
PATHS = 20_000
ENVIRONMENTS = 300
_DATABASE = "nix/var/nix/db/db.sqlite"
_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"


def status() -> Sequence[Row]:
    """Seconds of `flox-node status` on a full node over those on an empty one beside it."""
    samples: list[list[float]] = [[], []]
    with NodeBox("2.1") as empty, NodeBox("2.1") as full:
        for box in (empty, full):
            flox.install(box)
        _fill(full.root)
        for _ in range(ROUNDS + 1):
            for box, into in zip((full, empty), samples, strict=True):
                into.append(_seconds(box))
    ours, theirs = (each[1:] for each in samples)  # the first look is the page cache's
    return (
        ratio("scale.status_ratio", ours, theirs, goal=1.3),
        row("scale.status_s", ours, unit="s", goal=None),
    )


def _seconds(box: NodeBox) -> float:
    started = time.perf_counter()
    flox.flox_node(box, "status", "--json")
    return time.perf_counter() - started


def _fill(root: Path) -> None:
    paths = [f"/nix/store/{_hash(number)}-package-{number}" for number in range(PATHS)]
    for path in paths:
        (root / path.lstrip("/")).mkdir()
    _register(root / _DATABASE, paths)
    index = root / "var/lib/flox-node/envs/index"
    index.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths[:ENVIRONMENTS]):
        os.symlink(path, root / f"nix/var/nix/gcroots/flox-node/env-{path[11:43]}")
        (index / f"{number:032x}.json").write_text(
            json.dumps({"schema_version": 1, "environment": f"demo/e{number}", "mode": "run", "store_path": path})
        )


def _register(database: Path, paths: Sequence[str]) -> None:
    # In a copy: SQLite resolves a path's links, and a box's root is one of /proc that leads nowhere else.
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        copy = shutil.copy(database, scratch)
        with closing(sqlite3.connect(copy)) as connection, connection:
            connection.executemany(
                "insert into ValidPaths (path, hash, registrationTime, narSize) values (?, ?, 1, 1000)",
                ((path, f"sha256:{0:064x}") for path in paths),
            )
            connection.execute(
                "insert or ignore into Refs select a.id, b.id from ValidPaths a "
                "join ValidPaths b on b.id between a.id - 5 and a.id"
            )
        shutil.copyfile(copy, database)


def _hash(number: int) -> str:
    digits = ""
    for _ in range(32):
        number, digit = divmod(number, 32)
        digits = _ALPHABET[digit] + digits
    return digits


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {status: ("scale.status_ratio", "scale.status_s")}
