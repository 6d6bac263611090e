"""`python -m tests.bench [--only NAME]`: run the measurements, print a table, write bench.json in the project's root.

NAME is a figure ("payload.place_vs_cp_ratio") or a module ("payload"); bench.json then keeps its other figures.
The exit code is 1 when a figure misses its goal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.bench
from tests.bench.rows import Measurement, Row

RESULT = Path(__file__).parents[2] / "bench.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--only", default="", metavar="NAME", help="a figure or a module of tests/bench")
    only = parser.parse_args().only
    chosen = {
        measurement: names
        for measurement, names in _measurements(only)
        if not only or _matches(only, measurement, names)
    }
    if not chosen:
        print(f"There is no measurement {only!r}.", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for measurement, names in chosen.items():
        print(f"[bench] {', '.join(names)} ...", file=sys.stderr, flush=True)
        rows += measurement()
    _show(rows)
    kept = [row for row in _former() if only and row["name"] not in {new["name"] for new in rows}]
    RESULT.write_text(json.dumps(sorted([*kept, *rows], key=lambda row: row["name"]), indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


def _measurements(only: str) -> Iterable[tuple[Measurement, tuple[str, ...]]]:
    """Every module of this package may have `MEASUREMENTS`: functions, each with the names of the figures it gives."""
    for module in pkgutil.iter_modules(tests.bench.__path__):
        if module.name in ("__main__", "rows"):
            continue
        found: dict[Measurement, tuple[str, ...]] = getattr(
            importlib.import_module(f"tests.bench.{module.name}"), "MEASUREMENTS", {}
        )
        yield from found.items()


def _matches(only: str, measurement: Measurement, names: tuple[str, ...]) -> bool:
    return only in names or only == measurement.__module__.rpartition(".")[2]


def _former() -> list[Row]:
    try:
        former: list[Row] = json.loads(RESULT.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return former


def _show(rows: list[Row]) -> None:
    table = Table("figure", "value", "goal", "", box=None)
    for row in rows:
        goal = "" if row["goal"] is None else f"<= {row['goal']:g}"
        table.add_row(row["name"], f"{row['value']:g} {row['unit']}", goal, "ok" if row["ok"] else "MISSED")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
