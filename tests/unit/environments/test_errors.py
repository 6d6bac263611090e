"""What a refused file is told as."""

from __future__ import annotations

import errno
import os

import pytest

from flox_node.environments import protocol


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.ENOSPC, "disk-full", "no room, or no inodes"),
        (errno.EDQUOT, "disk-full", "quota"),
        (errno.EROFS, "build-failed", "read-only"),
        (errno.EIO, "build-failed", "dmesg"),
        (errno.EACCES, "build-failed", "Permission denied"),
    ],
)
def test_a_disk_that_refuses_is_no_bug(number: int, code: str, says: str) -> None:
    answer = protocol.failure(OSError(number, os.strerror(number), "/nix/x"), "demo/hello")
    assert (answer["code"], answer["final"]) == (code, False)
    assert says in answer["message"]
    assert "/nix/x" in answer["message"]
