"""The programs of this machine that unit tests run: Debian's, installed where a test asks for one and it may."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest

from tests.bed.debian import install_machine_packages


def program(name: str) -> str:
    """The path of a program; the test does not run where it is not there and cannot be had."""
    if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with contextlib.suppress(RuntimeError, OSError):
            install_machine_packages()
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"did NOT run: this machine has no {name} (apt-get install {name})")
    return found
