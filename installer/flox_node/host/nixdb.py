"""The database of a Nix store, read without Nix: which paths are valid, and what they refer to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flox_node.errors import CorruptError

_Ask = Callable[[str], list[tuple[Any, ...]]]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class ValidPath:
    """A registered store path. `nar_hash` is "sha256:<hex>", `nar_size` in bytes; `references` may name itself."""

    path: str
    nar_hash: str
    nar_size: int
    references: tuple[str, ...]


def valid_paths(database: Path) -> dict[str, ValidPath]:
    """All registered paths of the database file `.../nix/var/nix/db/db.sqlite`, with their references.

    Empty when it does not exist, or when Nix was killed before it had made its tables.

    Raises:
        CorruptError: it is no Nix database.
    """
    return _ask(database, _whole) or {}


def names(database: Path) -> set[str]:
    """The registered paths alone: thirty times less work than all of it. Otherwise as `valid_paths`."""
    return _ask(database, lambda ask: {path for (path,) in ask("select path from ValidPaths")}) or set()


def totals(database: Path) -> tuple[int, int]:
    """How many paths are registered, and their size in bytes of NAR. Otherwise as `valid_paths`."""
    [(count, size)] = _ask(database, lambda ask: ask("select count(*), sum(narSize) from ValidPaths")) or [(0, 0)]
    return count, size or 0


def _ask(database: Path, question: Callable[[_Ask], _Answer]) -> _Answer | None:
    if not database.exists():
        return None
    import sqlite3  # 6 ms, and most commands never look into the store

    try:
        before = _version(database)
        if before.log_is_empty:
            # Even a read-only connection writes the shared memory of the log, and looking must not write: without a log
            # all is in the file itself.
            found = _read(database, "immutable=1", question)
            if _version(database) == before:
                return found
        return _read(database, "mode=ro", question)
    except sqlite3.DatabaseError as error:
        raise CorruptError(
            f"The Nix database {database} cannot be read: {error}.",
            remedy="Check the disk; `nix-store --verify` of a Nix on this node may repair the database.",
        ) from error


@dataclass(frozen=True)
class _Version:
    """Tells whether Nix wrote while we read."""

    log_is_empty: bool
    modified_ns: int
    size: int


def _version(database: Path) -> _Version:
    status = database.stat()
    log = database.with_name(f"{database.name}-wal")
    return _Version(not log.exists() or log.stat().st_size == 0, status.st_mtime_ns, status.st_size)


def _read(database: Path, how: str, question: Callable[[_Ask], _Answer]) -> _Answer | None:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?{how}", uri=True)) as connection:
        # Nix makes its tables one by one, ValidPaths first and Refs next, and only then registers paths.
        if not connection.execute("select 1 from sqlite_master").fetchone():
            return None
        return question(lambda query: connection.execute(query).fetchall())


def _whole(ask: _Ask) -> dict[str, ValidPath]:
    rows = ask("select id, path, hash, narSize from ValidPaths")
    if not rows:
        return {}
    references: dict[int, list[str]] = {}
    for referrer, path in ask(
        "select r.referrer, p.path from Refs r join ValidPaths p on p.id = r.reference order by p.path"
    ):
        references.setdefault(referrer, []).append(path)
    return {
        path: ValidPath(path, nar_hash, nar_size or 0, tuple(references.get(number, ())))
        for number, path, nar_hash, nar_size in rows
    }
