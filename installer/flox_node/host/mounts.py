"""What is mounted where, in the node's own view and in that of its containers, read from procfs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from flox_node.host.files import HostFiles


@dataclass(frozen=True)
class Mount:
    """One line of a mountinfo file. `root` is the folder of the file system that `target` shows."""

    device: str
    root: str
    target: str
    options: frozenset[str]
    kind: str
    source: str


def parse(mountinfo: str) -> tuple[Mount, ...]:
    """The mounts of a `/proc/<pid>/mountinfo` text, in its order: a later one hides an earlier at the same place."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(rest) < 2:
            continue
        found.append(
            Mount(fields[2], _plain(fields[3]), _plain(fields[4]), frozenset(fields[5].split(",")), rest[0], rest[1])
        )
    return tuple(found)


def of_node(files: HostFiles) -> tuple[Mount, ...]:
    """The mounts that the node's own services see."""
    return _of_process(files, "1")


def covering(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount that `path` lies in."""
    inside = [mount for mount in mounts if is_below(path, mount.target) or path == mount.target]
    return max(inside, key=lambda mount: (len(mount.target), mounts.index(mount))) if inside else None


def shown_elsewhere(files: HostFiles, path: str) -> tuple[str, ...]:
    """What below the node's `path` is mounted in a mount namespace other than the node's own and ours, sorted.

    That is what containers hold. A mount of `path` itself or of what is above it (a hostPath of `/`, say) shows the
    tree, but would not keep anything below it, so it does not count.
    """
    base = covering(of_node(files), path)
    if base is None:
        return ()
    prefix = f"{base.root.rstrip('/')}{path.removeprefix(base.target.rstrip('/'))}"
    seen = {files.readlink("/proc/1/ns/mnt"), os.readlink("/proc/self/ns/mnt"), None}
    found = set()
    for pid in filter(str.isdigit, files.listdir("/proc")):
        namespace = files.readlink(f"/proc/{pid}/ns/mnt")
        if namespace in seen:
            continue
        seen.add(namespace)
        for mount in _of_process(files, pid):
            if mount.device == base.device and is_below(mount.root, prefix):
                found.add(f"{path}{mount.root.removeprefix(prefix)}")
    return tuple(sorted(found))


def is_below(path: str, folder: str) -> bool:
    """Whether `path` lies strictly below `folder`."""
    return path.startswith(f"{folder.rstrip('/')}/") and path != folder


def _of_process(files: HostFiles, pid: str) -> tuple[Mount, ...]:
    try:
        return parse((files.read_optional(f"/proc/{pid}/mountinfo") or b"").decode(errors="surrogateescape"))
    except OSError:  # it ended meanwhile
        return ()


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
