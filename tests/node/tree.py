"""What "to the byte" compares: type, mode, owner, extended attributes and content of every file of a node."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from tests.bed.box import NodeBox

# Of this boot, of the kernel, of containerd's own business, logs: no installer's doing.
_LEFT_OUT = frozenset(
    {"dev", "proc", "run", "sys", "tmp", "var/lib/containerd", "var/log", "var/tmp", "var/lib/systemd", "var/run"}
)


def tree(box: NodeBox, beside: Collection[str] = ()) -> dict[str, tuple[object, ...]]:
    """Every path of the node outside `/run`, logs and containerd's images, with all that must not change.

    beside: further folders to leave out.
    """
    root = box.root
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        relative = str(here.relative_to(root))
        folders[:] = [name for name in folders if str((here / name).relative_to(root)) not in {*_LEFT_OUT, *beside}]
        for name in [*folders, *files]:
            path = here / name
            found[f"{relative}/{name}".removeprefix("./")] = _identity(path)
    return found


def _identity(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    content = ""
    if stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    return (oct(status.st_mode), status.st_uid, status.st_gid, tuple(sorted(attributes.items())), content)
