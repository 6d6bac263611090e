"""Programs of whoever sits at the keyboard, found on their PATH and run with their environment.

The node's programs are `flox_node.host.processes`' business; these are docker's, kind's and kubectl's on a laptop.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flox_node.errors import OutsideError


@dataclass(frozen=True)
class Answer:
    """What a program that was asked said."""

    returncode: int
    stdout: str
    stderr: str


class Terminal(Protocol):
    """How the laptop's programs are found, asked and told to do something."""

    def which(self, name: str) -> str | None:
        """The path of a program on PATH."""

    def ask(self, argv: Sequence[str], timeout: float = 60.0) -> Answer:
        """Run a program that changes nothing, and hear what it says.

        Raises:
            OutsideError: it is not there, or did not end within `timeout` seconds.
        """

    def do(self, argv: Sequence[str], stdin: Path | None = None) -> int:
        """Run a program that changes something; its output is shown as it comes. Returns its exit code."""


class UserTerminal:
    """The real one."""

    def which(self, name: str) -> str | None:
        """See `Terminal`."""
        return shutil.which(name)

    def ask(self, argv: Sequence[str], timeout: float = 60.0) -> Answer:
        """See `Terminal`."""
        try:
            done = subprocess.run(
                list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
            )
        except FileNotFoundError as error:
            raise OutsideError(f"{argv[0]} is not on the PATH.") from error
        except subprocess.TimeoutExpired as error:
            raise OutsideError(f"`{' '.join(argv)}` did not answer within {timeout:.0f} s.") from error
        return Answer(done.returncode, done.stdout, done.stderr)

    def do(self, argv: Sequence[str], stdin: Path | None = None) -> int:
        """See `Terminal`."""
        try:
            if stdin is None:
                return subprocess.run(list(argv), stdin=subprocess.DEVNULL, check=False).returncode
            with stdin.open("rb") as source:
                return subprocess.run(list(argv), stdin=source, check=False).returncode
        except FileNotFoundError as error:
            raise OutsideError(f"{argv[0]} is not on the PATH.") from error
