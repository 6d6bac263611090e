"""The corpus of containerd configurations and what real daemons of four releases did with each file."""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("FLOX_NODE_CORPUS") or Path(__file__).parents[4] / "shared" / "corpus")
SETS = ("dev", "synthetic")
KEYS = {"cri": "cri", "grpc": "io.containerd.grpc.v1.cri", "rt": "io.containerd.cri.v1.runtime"}
FILES_IN_THE_CORPUS = 112  # to say how many cases did not run where it is missing
VERSIONS = ("v1.7.34", "v2.0.11", "v2.2.7", "v2.3.4", "main")


@dataclass(frozen=True)
class Case:
    """One file under one containerd. `verdict` is ORACLE.json's entry."""

    path: Path
    containerd: str
    verdict: dict[str, Any]

    @property
    def source(self) -> bytes:
        return self.path.read_bytes()

    @property
    def baseline(self) -> dict[str, Any]:
        return dict(self.verdict["baseline"])

    @property
    def flox_is_there(self) -> bool:
        return bool(self.verdict.get("flox_already_effective"))

    @property
    def ids(self) -> set[str]:
        """The plugin ids under which an appended handler becomes effective and nothing else changes."""
        return {KEYS[key] for key in self.verdict.get("good_keys", ())}

    @property
    def ids_with_runc(self) -> set[str]:
        """The ids that need a table for runc beside it."""
        return {
            plugin for key, plugin in KEYS.items() if self.verdict.get(key, {}).get("ok_if_runc_is_added_explicitly")
        }

    @property
    def can_be_registered(self) -> bool:
        alive = self.baseline["rc"] == 0 and self.baseline["cri"] == "ok"
        return alive and (self.flox_is_there or bool(self.ids or self.ids_with_runc))

    def __str__(self) -> str:
        return f"{self.path.name} with {self.containerd}"


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every file of the corpus under every containerd of its oracle; skips the test, loudly, without a corpus."""
    if not FOLDER.is_dir():
        pytest.skip(
            f"did NOT run: {FILES_IN_THE_CORPUS * len(VERSIONS)} cases of the corpus; {FOLDER} is not there "
            "(FLOX_NODE_CORPUS names it)"
        )
    found = []
    for name in SETS:
        oracle = json.loads((FOLDER / name / "ORACLE.json").read_text())
        for file, entry in oracle.items():
            for containerd, verdict in entry["containerd"].items():
                number = "2.4.0-beta" if containerd == "main" else containerd
                found.append(Case(FOLDER / name / file, number, verdict))
    return tuple(found)


def files() -> tuple[Path, ...]:
    """Every file of the corpus."""
    return tuple(dict.fromkeys(case.path for case in cases()))
