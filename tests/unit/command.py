"""Calls commands of `flox-node` in this process, as the program itself runs them."""

from __future__ import annotations

import functools
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import typer
import typer.main

from flox_node.cli import app, output

# The program makes its commands once, and that is most of what a call costs.
_made_once = functools.cache(typer.main.get_command)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit_code: int
    stdout_bytes: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode()


def call(*words: str | Path, input: bytes = b"", of: typer.Typer = app) -> Done:
    """Run `flox-node WORDS...`; an error of ours is its exit code and text, as for a user."""
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (input, b"", b""))
    with (
        mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr),
        mock.patch.object(typer.main, "get_command", _made_once),
    ):
        exit_code = output.run(of, [str(word) for word in words])
    told = []
    for stream in (stdout, stderr):
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        told.append(stream.buffer.getvalue())
    return Done(exit_code, told[0], told[1].decode())
