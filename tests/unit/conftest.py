"""Fixtures of the unit tests."""

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


def _fast() -> Path | None:
    """Memory, where programs may be run from it: a disk would be synced ten thousand times."""
    if not _MEMORY.is_dir():
        return None
    found = os.statvfs(_MEMORY)
    roomy = found.f_bavail * found.f_frsize > 1 << 30
    return _MEMORY if roomy and not found.f_flag & os.ST_NOEXEC else None


@pytest.fixture
def tmp_path() -> Generator[Path]:
    """A folder with a short name: a socket may have 107 bytes of path, and most of them are in pytest's own."""
    with tempfile.TemporaryDirectory(prefix="fn-", dir=_fast(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
