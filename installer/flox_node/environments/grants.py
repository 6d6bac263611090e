"""What FloxHub granted to whom, and when: a cached environment is given to nobody else.

A grant is remembered under a keyed hash of the token, in a file that only root can read; the token itself is kept
nowhere. Within the policy's freshness the shim reads the grant and asks nobody (shim/internal/realise); while the hub
cannot be reached, a grant counts for the policy's grace.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import time
from dataclasses import asdict, dataclass

from flox_node.environments import roots
from flox_node.environments.closure import is_store_path
from flox_node.environments.index import Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference

SCHEMA_VERSION = 1
LONGEST_S = 30 * 86400.0  # the policy's longest grace: older ones are of no use to anybody


@dataclass(frozen=True)
class Grant:
    """What was asked for, with which token. `hub` is the address of the hub's repositories."""

    hub: str
    reference: Reference
    mode: str
    system: str
    token: str | None

    def name(self, key: bytes) -> str:
        """The name of its file."""
        words = (self.hub, str(self.reference), self.mode, self.system, self.token or "")
        return hmac.new(key, "\0".join(words).encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Granted:
    """The answer of then, and how many seconds ago that was."""

    resolution: Resolution
    age_s: float


def record(grant: Grant, resolution: Resolution, paths: Paths) -> None:
    """Remember that the hub granted it just now."""
    os.makedirs(paths.grants, mode=0o700, exist_ok=True)
    file = f"{paths.grants}/{grant.name(_key(paths))}.json"
    entry = {"schema_version": SCHEMA_VERSION, "granted_at": time.time(), "resolution": asdict(resolution)}
    temporary = f"{file}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8", opener=_private) as stream:
        json.dump(entry, stream)
    os.rename(temporary, file)


def find(grant: Grant, paths: Paths, longest_s: float) -> Granted | None:
    """What was granted at most that many seconds ago and still is on the node."""
    try:
        with open(f"{paths.grants}/{grant.name(_key(paths))}.json", "rb") as stream:
            entry = json.loads(stream.read())
        if entry["schema_version"] != SCHEMA_VERSION:
            return None
        age = time.time() - float(entry["granted_at"])
        resolution = Resolution(**{name: entry["resolution"][name] for name in Resolution.__dataclass_fields__})
        whole = is_store_path(resolution.store_path) and roots.holds(resolution.key, resolution.store_path, paths)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    # A clock that was set back makes every grant one of the future: then it does not count.
    return Granted(resolution, age) if whole and 0 <= age <= longest_s else None


def forget(grant: Grant, paths: Paths) -> None:
    """The hub refuses it now."""
    with contextlib.suppress(OSError):
        os.unlink(f"{paths.grants}/{grant.name(_key(paths))}.json")


def sweep(paths: Paths) -> None:
    """Remove the grants that no grace reaches any more."""
    with contextlib.suppress(FileNotFoundError), os.scandir(paths.grants) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > LONGEST_S:
                    os.unlink(entry.path)


def _key(paths: Paths) -> bytes:
    """The node's own key; made once."""
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError), open(paths.grant_key, "rb") as stream:
            return stream.read()
        os.makedirs(os.path.dirname(paths.grant_key), mode=0o700, exist_ok=True)
        temporary = f"{paths.grant_key}.{os.getpid()}.tmp"
        with open(temporary, "wb", opener=_private) as stream:
            stream.write(os.urandom(32))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, paths.grant_key)
        finally:
            os.unlink(temporary)
    raise FileNotFoundError(paths.grant_key)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
