"""Fixtures of the unit tests."""

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Generator[Path]:
    """A folder of the test with a short name: a socket's path may have 107 bytes, and pytest's own takes most of them."""
    with tempfile.TemporaryDirectory(prefix="fn-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
