"""How full a file system is."""

from __future__ import annotations

import os
from pathlib import Path

LOW = 0.1  # of the bytes or of the inodes of the store's file system; below it garbage is collected at once


def free_ratios(path: Path) -> tuple[float, float]:
    """The shares that are free for everybody: of bytes, and of inodes (1 where they are not counted)."""
    status = os.statvfs(path)
    return status.f_bavail / max(1, status.f_blocks), status.f_favail / status.f_files if status.f_files else 1.0
