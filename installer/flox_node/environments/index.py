"""The index: which build answers which question. One file per question, written as a whole.

The question decides what an entry may be reused for:

- the live generation is asked for by the *commit* at the branch's tip, for a new commit may make another one live;
- a pinned generation is asked for by its *number*: its content is fixed, and pushes of others must not evict it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from flox_node.atomic import write
from flox_node.environments import roots
from flox_node.environments.closure import hash_part, is_store_path
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Question:
    """What a pod asks for. `commit` is the branch's tip, as the pod's own token saw it."""

    hub: str
    reference: Reference
    commit: str
    mode: str
    system: str

    @property
    def key(self) -> str:
        """The name of the entry that may answer it."""
        pinned = self.reference.generation
        which = f"commit {self.commit}" if pinned is None else f"generation {pinned}"
        return digest(self.hub, self.reference.environment, which, self.mode, self.system)


@dataclass(frozen=True)
class Resolution:
    """The answer: exactly this generation, at this store path. `commit` is where the generation was read from."""

    environment: str
    generation: int
    commit: str
    mode: str
    system: str
    store_path: str

    @property
    def key(self) -> str:
        """The name of its root."""
        return hash_part(self.store_path)


def digest(*words: str) -> str:
    """A short name for a tuple of words, safe in a file name."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def lookup(question: Question, paths: Paths) -> Resolution | None:
    """The build that answers a question, if it is still whole: path and root are there.

    The entry's modification time becomes the time of its last use.
    """
    file = _file(question, paths)
    try:
        with open(file, "rb") as stream:
            resolution = _resolution(json.loads(stream.read()), question)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # missing or damaged alike: it is built again
    if not roots.holds(resolution.key, resolution.store_path, paths):
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return resolution


def record(question: Question, resolution: Resolution, paths: Paths, *, took_s: float | None = None) -> None:
    """Publish a build, which took so many seconds: durable and whole. Its path must be rooted before."""
    os.makedirs(paths.index, mode=0o700, exist_ok=True)
    entry = {
        "schema_version": SCHEMA_VERSION,
        "hub": question.hub,
        "pinned": question.reference.generation is not None,
        "created_at": int(time.time()),
        **({"took_s": round(took_s, 1)} if took_s is not None else {}),
        **asdict(resolution),
    }
    write(_file(question, paths), json.dumps(entry, indent=1).encode(), mode=0o600)


def last_took(environment: str, paths: Paths) -> float | None:
    """How many seconds the newest realisation of this environment took on this node, whichever generation it was."""
    found: list[tuple[float, float]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(paths.index) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(entry.path, "rb") as stream:
                told = json.loads(stream.read())
                if told["environment"] == environment:
                    found.append((float(told["created_at"]), float(told["took_s"])))
    return max(found)[1] if found else None


def _file(question: Question, paths: Paths) -> str:
    return f"{paths.index}/{question.key}.json"


def _resolution(entry: Any, question: Question) -> Resolution:
    if entry["schema_version"] != SCHEMA_VERSION or entry["hub"] != question.hub:
        raise ValueError("another question's entry")
    resolution = Resolution(**{name: entry[name] for name in Resolution.__dataclass_fields__})
    asked = (question.reference.environment, question.mode, question.system)
    generation = question.reference.generation
    if (
        (resolution.environment, resolution.mode, resolution.system) != asked
        or (resolution.commit != question.commit if generation is None else resolution.generation != generation)
        or not is_store_path(resolution.store_path)
    ):
        raise ValueError("another question's entry")
    return resolution
