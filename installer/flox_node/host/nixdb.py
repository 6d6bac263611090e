"""The database of a Nix store, read without Nix: which paths are valid, and what they refer to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flox_node.errors import CorruptError


@dataclass(frozen=True)
class ValidPath:
    """A registered store path. `nar_hash` is "sha256:<hex>", `nar_size` in bytes; `references` may name itself."""

    path: str
    nar_hash: str
    nar_size: int
    references: tuple[str, ...]


def valid_paths(database: Path) -> dict[str, ValidPath]:
    """All registered paths of the database file `.../nix/var/nix/db/db.sqlite`.

    Empty when it does not exist, or when Nix was killed before it had made its tables.

    Raises:
        CorruptError: it is no Nix database.
    """
    if not database.exists():
        return {}
    import sqlite3  # 6 ms, and most commands never look into the store

    try:
        before = _version(database)
        if before.log_is_empty:
            # Even a read-only connection writes the shared memory of the log, and looking must not write: without a log
            # all is in the file itself.
            found = _read(database, "immutable=1")
            if _version(database) == before:
                return found
        return _read(database, "mode=ro")
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


def _read(database: Path, how: str) -> dict[str, ValidPath]:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?{how}", uri=True)) as connection:
        # Nix makes its tables one by one, ValidPaths first and Refs next, and only then registers paths.
        if not connection.execute("select 1 from sqlite_master").fetchone():
            return {}
        rows = connection.execute("select id, path, hash, narSize from ValidPaths").fetchall()
        if not rows:
            return {}
        references: dict[int, list[str]] = {}
        query = "select r.referrer, p.path from Refs r join ValidPaths p on p.id = r.reference order by p.path"
        for referrer, path in connection.execute(query):
            references.setdefault(referrer, []).append(path)
        return {
            path: ValidPath(path, nar_hash, nar_size or 0, tuple(references.get(number, ())))
            for number, path, nar_hash, nar_size in rows
        }
