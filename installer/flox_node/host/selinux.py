"""SELinux labels of what flox-node creates. Where the kernel runs without SELinux, nothing is set.

A file that a pod creates would carry the pod's type (or its folder's), and then containerd may not execute it, systemd
may not read it, or containers may not see it. The types are those that every targeted policy has; no policy module is
loaded, because that step fails on too many systems.
"""

from __future__ import annotations

import fnmatch
import os
from enum import StrEnum
from pathlib import Path

ATTRIBUTE = "security.selinux"
_ENFORCE = "sys/fs/selinux/enforce"
# The first rule that matches counts; a pattern with `/**` means all below a folder, and the folder.
_RULES = (
    ("/opt/flox-node/payloads/*/bin/**", "bin_t"),
    ("/opt/flox-node/payloads/.*/bin/**", "bin_t"),
    ("/opt/flox-node/bin/**", "bin_t"),
    ("/opt/flox-node/**", "usr_t"),
    ("/nix/**", "usr_t"),
    ("/etc/systemd/system/*", "systemd_unit_file_t"),
    ("/etc/flox-node/**", "etc_t"),
    ("/var/lib/flox-node/**", "var_lib_t"),
    ("/run/flox-node/**", "var_run_t"),
)


class Mode(StrEnum):
    """What SELinux does on a node."""

    ABSENT = "absent"
    PERMISSIVE = "permissive"
    ENFORCING = "enforcing"


def mode(root: Path) -> Mode:
    """What SELinux does on the node whose root file system is at `root`."""
    try:
        return Mode.ENFORCING if (root / _ENFORCE).read_text().strip() == "1" else Mode.PERMISSIVE
    except OSError:
        return Mode.ABSENT


def type_of(path: str) -> str | None:
    """The type that a file of ours at the node's `path` has; None where the folder's own is right."""
    for pattern, kind in _RULES:
        stem = pattern.removesuffix("/**")
        if fnmatch.fnmatchcase(path, pattern) or (stem != pattern and fnmatch.fnmatchcase(path, stem)):
            return kind
    return None


def label(root: Path, path: str, real: Path | int) -> None:
    """Label one file of ours at the node's `path` (open or by its real path), if the node has SELinux."""
    kind = type_of(path)
    if kind is not None and mode(root) is not Mode.ABSENT:
        _set_type(real, kind)


def label_tree(root: Path, path: str) -> int:
    """Label what is ours at the node's `path`, with all in it; how many things there had another type."""
    if mode(root) is Mode.ABSENT:
        return 0
    real = root / path.lstrip("/")
    inside = (Path(folder, name) for folder, folders, files in os.walk(real) for name in (*folders, *files))
    return sum(_correct(root, here) for here in (real, *inside))


def wrong_labels(root: Path, path: str) -> list[str]:
    """What of ours at the node's `path` carries another type than it should; nothing where SELinux is absent."""
    if mode(root) is Mode.ABSENT:
        return []
    real = root / path.lstrip("/")
    inside = (Path(folder, name) for folder, folders, files in os.walk(real) for name in (*folders, *files))
    named = ((f"/{here.relative_to(root)}", here) for here in (real, *inside))
    return [name for name, here in named if (kind := type_of(name)) is not None and type_at(here) != kind]


def _correct(root: Path, real: Path) -> bool:
    kind = type_of(f"/{real.relative_to(root)}")
    if kind is None or type_at(real) == kind:
        return False
    try:
        _set_type(real, kind)
    except FileNotFoundError:  # a pod's, which has gone with it
        return False
    return True


def _set_type(real: Path | int, kind: str) -> None:
    value = f"system_u:object_r:{kind}:s0\0".encode()
    if isinstance(real, int):
        os.setxattr(real, ATTRIBUTE, value)
    else:
        os.setxattr(real, ATTRIBUTE, value, follow_symlinks=False)


def type_at(real: Path) -> str | None:
    """The type that a file carries; None where it has no label."""
    try:
        parts = os.getxattr(real, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode().split(":")
    except OSError:
        return None
    return parts[2] if len(parts) > 2 else None
