"""Trying out what a node's folders allow: a real write and a real execution, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass

from flox_node.errors import OutsideError
from flox_node.host.host import Host

_NAME = ".flox-node-probe"
_PROGRAM = b"#!/bin/sh\nexit 0\n"


@dataclass(frozen=True)
class FolderProbe:
    """What was found in a folder. The reasons are empty where it works."""

    folder: str
    not_writable: str = ""
    not_executable: str = ""


@dataclass(frozen=True)
class Space:
    """What a file system has left: bytes, and inodes (None where it does not count them)."""

    folder: str
    free_bytes: int
    free_inodes: int | None


def try_folder(host: Host, folder: str, *, execute: bool = False) -> FolderProbe:
    """Write a file into `folder` (or what is nearest above it and exists), run it if asked to, and remove it."""
    place = nearest(host, folder)
    path = posixpath.join(place, _NAME)
    real = host.files.real(path, follow=False)
    try:
        descriptor = os.open(real, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    except OSError as error:
        return FolderProbe(folder, not_writable=error.strerror or str(error))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_PROGRAM)
        return FolderProbe(folder, not_executable=_execution_fails(host, path) if execute else "")
    except OSError as error:
        return FolderProbe(folder, not_writable=error.strerror or str(error))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(real)


def space(host: Host, folder: str) -> Space:
    """What the file system of `folder` (or of what is nearest above it and exists) has left for root."""
    status = os.statvfs(host.files.real(nearest(host, folder)))
    return Space(folder, status.f_bfree * status.f_frsize, status.f_ffree if status.f_files else None)


def nearest(host: Host, folder: str) -> str:
    """The folder itself, or the lowest one above it that exists."""
    while folder != "/" and not host.files.is_dir(folder):
        folder = posixpath.dirname(folder)
    return folder


def _execution_fails(host: Host, path: str) -> str:
    try:
        done = host.processes.run([path], timeout=10)
    except OutsideError as error:
        if isinstance(error.__cause__, OSError):  # it could not be started; else it did not end
            return error.__cause__.strerror or str(error.__cause__)
        raise
    return "" if done.returncode == 0 else f"exit code {done.returncode}"
