"""The database as Nix leaves it, whole and half made."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flox_node.errors import CorruptError
from flox_node.host.nixdb import ValidPath, names, totals, valid_paths

_TABLES = (
    "create table ValidPaths (id integer primary key autoincrement, path text, hash text, narSize integer)",
    "create table Refs (referrer integer, reference integer)",
)
_PATHS = (
    "insert into ValidPaths values (1, '/nix/store/a', 'sha256:a', 1), (2, '/nix/store/b', 'sha256:b', 2)",
    "insert into Refs values (1, 1), (1, 2)",
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite"


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_paths_and_what_they_refer_to_are_read(database: Path, journal: str) -> None:
    _make(database, *_TABLES, *_PATHS, journal=journal)
    assert valid_paths(database) == {
        "/nix/store/a": ValidPath("/nix/store/a", "sha256:a", 1, ("/nix/store/a", "/nix/store/b")),
        "/nix/store/b": ValidPath("/nix/store/b", "sha256:b", 2, ()),
    }
    assert names(database) == {"/nix/store/a", "/nix/store/b"}
    assert totals(database) == (2, 3)


def test_what_only_the_log_has_is_read(database: Path) -> None:
    _make(database, *_TABLES, journal="wal")
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        for statement in _PATHS:
            writer.execute(statement)
        assert database.with_name("db.sqlite-wal").stat().st_size > 0
        assert list(valid_paths(database)) == ["/nix/store/a", "/nix/store/b"]
        assert totals(database) == (2, 3)


def test_without_a_database_no_path_is_valid(database: Path) -> None:
    assert (valid_paths(database), names(database), totals(database)) == ({}, set(), (0, 0))


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("made", range(len(_TABLES) + 1))
def test_a_database_that_nix_was_killed_over_has_no_valid_path(database: Path, made: int, journal: str) -> None:
    _make(database, *_TABLES[:made], journal=journal)
    assert (valid_paths(database), names(database), totals(database)) == ({}, set(), (0, 0))


def test_an_empty_file_has_no_valid_path(database: Path) -> None:
    database.touch()
    assert valid_paths(database) == {}


@pytest.mark.parametrize(
    "statements", [("create table other (x)",), (_TABLES[0], _PATHS[0])], ids=["foreign", "no Refs"]
)
def test_a_database_that_is_not_as_nix_makes_it_is_refused(database: Path, statements: tuple[str, ...]) -> None:
    _make(database, *statements)
    with pytest.raises(CorruptError, match="no such table"):
        valid_paths(database)


def test_a_file_that_is_no_database_is_refused(database: Path) -> None:
    database.write_bytes(b"x" * 5000)
    with pytest.raises(CorruptError, match="not a database"):
        valid_paths(database)


def _make(database: Path, *statements: str, journal: str = "wal") -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"pragma journal_mode = {journal}")
        for statement in statements:
            connection.execute(statement)
