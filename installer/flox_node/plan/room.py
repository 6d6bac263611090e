"""Room on the store's file system: how much is lacking, and Nix removing what is rooted no more."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flox_node.actions.create_directory import was_made
from flox_node.actions.mount_nix import NIX
from flox_node.environments import closure, gc
from flox_node.environments.gc import Weight
from flox_node.environments.paths import Paths
from flox_node.errors import FloxNodeError, OutsideError
from flox_node.host import Host
from flox_node.host.space import LOW, free_ratios
from flox_node.names import CURRENT
from flox_node.payload.manifest import NAME, parse
from flox_node.payload.place import NIX_ENVIRONMENT

HIGH = 0.2  # of bytes and of inodes: below LOW, environments go before their time until so much is free
_AT_ONCE = 256 << 20  # bytes; between two such steps of Nix' own lock whoever waits for it gets it
_LONGEST_S = 3600.0
_DELETED = re.compile(r"(\d+) store paths? deleted, ([\d.]+) (\w+) freed")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Freed:
    """What Nix removed."""

    paths: int = 0
    bytes: float = 0.0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.paths + other.paths, self.bytes + other.bytes)

    def __str__(self) -> str:
        return f"{self.paths} store paths deleted, {self.bytes / (1 << 20):.2f} MiB freed" if self.paths else ""


def lacking(host: Host) -> Weight | None:
    """What has to be freed, where less than LOW is free, so that HIGH is; None where there is room."""
    if min(free_ratios(host.files.real(NIX))) >= LOW:
        return None
    status = os.statvfs(host.files.real(NIX))
    return Weight(
        max(0.0, (HIGH * status.f_blocks - status.f_bavail) * status.f_frsize),
        max(0.0, HIGH * status.f_files - status.f_favail),
    )


def make_room(host: Host, paths: Paths, *, fresh_s: float) -> tuple[list[str], Freed]:
    """Let go of environments before their time, and have Nix remove them, until there is room or nothing may go.

    What was asked for in the last `fresh_s` seconds stays. Returns the environments' names and what Nix removed.
    """
    gone: list[str] = []
    freed = Freed()
    while (need := lacking(host)) is not None:
        since = time.time() - fresh_s
        keys = gc.enough(
            paths,
            need,
            since=since,
            closure=lambda store_path: closure_of(store_path, paths),
            weigh=lambda store_path: weigh(store_path, paths),
        )
        names = gc.let_go(keys, paths, unused_since=since)
        if not names:
            break
        gone += names
        freed += collect_garbage(host)
    return gone, freed


def is_ours(host: Host) -> bool:
    """Whether an install made the store. In one that was there before, garbage is its owner's."""
    return was_made(host, NIX)


def collect_garbage(host: Host) -> Freed:
    """Have Nix remove what is rooted no more, a little at a time, so that nobody waits long for its lock.

    Raises:
        OutsideError: Nix failed, or did not come to an end within an hour.
    """
    program = parse(host.files.read(f"{CURRENT}/{NAME}")).entry_points["nix-store"]
    until = time.monotonic() + _LONGEST_S
    freed = Freed()
    while True:
        words = [program, "--gc", "--max-freed", str(_AT_ONCE)]
        done = host.processes.run(words, env=NIX_ENVIRONMENT, timeout=max(1.0, until - time.monotonic()))
        text = (done.stdout + done.stderr).decode(errors="replace").strip()
        found = _DELETED.search(text)
        if done.returncode != 0 or found is None:
            raise OutsideError(f"Nix could not collect garbage: {text.splitlines()[-1] if text else 'no reason given'}")
        step = Freed(int(found[1]), float(found[2]) * _UNITS.get(found[3], 0))
        freed += step
        if step.bytes < _AT_ONCE or time.monotonic() > until:
            return freed


def closure_of(store_path: str, paths: Paths) -> Iterable[str]:
    """A built environment's closure; itself alone where its list is damaged."""
    try:
        return closure.requisites(store_path, paths)
    except FloxNodeError:
        return (store_path,)


def weigh(store_path: str, paths: Paths) -> Weight:
    """What a store path takes on the disk, without the files that have another name elsewhere."""
    blocks, inodes, waiting = 0, 0, [paths.on_disk(store_path)]
    while waiting:
        place = waiting.pop()
        try:
            status = os.lstat(place)
            if stat.S_ISDIR(status.st_mode):
                waiting += [entry.path for entry in os.scandir(place)]
            elif status.st_nlink > 1:
                continue
        except FileNotFoundError:
            continue
        blocks, inodes = blocks + status.st_blocks, inodes + 1
    return Weight(blocks * 512, inodes)
