"""What a refused file is told as."""

from __future__ import annotations

import errno
import os

import pytest

from flox_node.environments import protocol
from flox_node.errors import CorruptError, FloxNodeError, OutsideError


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CorruptError("the policy is damaged.", remedy="Apply it again."), "corrupt"),
        (OutsideError("/opt/flox cannot be started.", remedy="Install again."), "build-failed"),
        (FloxNodeError("something."), "bug"),
        (ZeroDivisionError(), "bug"),
    ],
)
def test_a_damaged_node_is_no_bug(error: Exception, code: str) -> None:
    answer = protocol.failure(error, "demo/hello")
    assert (answer["code"], answer["final"]) == (code, False)
    if isinstance(error, FloxNodeError):
        assert error.cause in answer["message"]
        assert error.remedy in answer["message"]
