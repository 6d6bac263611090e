"""Fixtures of the unit tests."""

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Generator[Path]:
    """A folder with a short name: a socket may have 107 bytes of path, and most of them are in pytest's own."""
    with tempfile.TemporaryDirectory(prefix="fn-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
