"""Compare the packages of the node's environments with what the store's database says, and fetch damaged ones again."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flox_node.environments import flox_cli, gc, realise, work
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.substitute import NEVER_BUILD
from flox_node.errors import OutsideError
from flox_node.host.children import Completed, run_group

_MODIFIED = re.compile(r"path '(/nix/store/[^'/]+)' was modified!")
_NAME = "verify"  # of lock and folder
_AT_ONCE = 200  # paths that one call names
_LARGEST_OUTPUT = 16 << 20


@dataclass(frozen=True)
class Verified:
    """What was found. `damaged` maps each store path that is not as registered, still, to the environments with it; an
    environment that the database does not know is damaged itself. `repaired` are the store paths that were mended,
    `removed` those that were put together here: they are made anew for the next pod.
    """

    environments: int
    store_paths: int
    damaged: dict[str, list[str]]
    repaired: list[str]
    removed: list[str]


def verify(access: Access, deadline: Deadline, *, repair: bool, tell: Callable[[str], None]) -> Verified:
    """Read every byte of every cached environment's closure; with `repair`, have what is damaged fetched again from the
    policy's caches. What was put together here, an environment itself above all, goes with the environments that have
    it, unless a pod does.

    Raises:
        OutsideError: Nix cannot do it. DeadlineError: it takes too long. CorruptError: the payload is damaged.
    """
    paths = access.paths
    with work.locked(_NAME, paths, deadline), work.private_folder(_NAME, paths) as folder:
        env = flox_cli.private_environment(folder, access.policy, token=None, ca_file=access.ca_file)
        programs = {"nix-store": realise.program("nix-store", paths), "nix": realise.nix_program(paths)}

        def nix(*arguments: str, program: str = "nix-store") -> Completed:
            done = run_group([programs[program], *arguments], env=env, timeout=deadline.left(), limit=_LARGEST_OUTPUT)
            if done.timed_out:
                deadline.left()
            return done

        users: dict[str, list[str]] = {}
        closures: dict[str, list[str]] = {}
        damaged: list[str] = []
        entries = {(entry.environment, entry.mode, entry.store_path) for entry in gc.entries(paths)}
        for environment, mode, store_path in sorted(entries):
            asked = nix("--query", "--requisites", store_path)
            known = asked.stdout.decode().split() if asked.returncode == 0 else []
            if not known:
                damaged.append(store_path)
            closures[store_path] = known or [store_path]
            for path in closures[store_path]:
                users.setdefault(path, []).append(f"{environment} ({mode})")
        damaged += _damaged(sorted(set(users).difference(damaged)), access, nix, tell)
        repaired: list[str] = []
        removed: list[str] = []
        for path in damaged if repair else ():
            tell(f"{path} is repaired.")
            if nix("--repair-path", *NEVER_BUILD, path).returncode == 0 and not _damaged(
                [path], access, nix, lambda _: None
            ):
                repaired.append(path)
            elif path in closures or _was_built_here(path, nix):
                holders = {entry.key for entry in gc.entries(paths) if path in closures[entry.store_path]}
                gc.let_go(holders, paths, unused_since=math.inf)
                if nix("--delete", path).returncode == 0:  # and what refers to it; nothing that a pod has
                    removed.append(path)
        left = {path: users[path] for path in damaged if path not in (*repaired, *removed)}
        return Verified(len(entries), len(users), left, repaired, removed)


def _was_built_here(path: str, nix: Callable[..., Completed]) -> bool:
    """Whether the database says so. What came from elsewhere may be had nowhere any more."""
    try:
        told = json.loads(nix("path-info", "--json", path, program="nix").stdout)
        return all(entry["ultimate"] for entry in (told.values() if isinstance(told, dict) else told))
    except (ValueError, TypeError, LookupError):
        return False


def _damaged(
    paths: Sequence[str], access: Access, nix: Callable[..., Completed], tell: Callable[[str], None]
) -> list[str]:
    """Those that are not there, or not as they were registered."""
    here = [path for path in paths if os.path.lexists(access.paths.on_disk(path))]
    found = sorted(set(paths).difference(here))
    for start in range(0, len(here), _AT_ONCE):
        asked = here[start : start + _AT_ONCE]
        done = nix("--verify-path", *asked)
        said = done.stderr.decode("utf-8", "replace")
        modified = [path for path in _MODIFIED.findall(said) if path in asked]
        if done.returncode and not modified:
            raise OutsideError(f"Nix cannot compare the store with its database: {said.strip()[-300:]}.")
        found += modified
        tell(f"{start + len(asked)} of {len(here)} store paths are compared.")
    return found
