"""Bring the packages of an environment into the store out of binary caches, and build nothing.

This comes before the Flox CLI, which evaluates and builds from source what no cache gave it, out of a tenant's lock. It
finds every path here and asks nobody. Nix' own texts say why something did not come: it has no other error codes.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flox_node.environments.closure import is_store_path
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import (
    BuildFailedError,
    DiskFullError,
    NetworkError,
    NotBuiltError,
    NotTrustedError,
    TooLargeError,
)
from flox_node.environments.lock import Package
from flox_node.environments.paths import Paths
from flox_node.errors import FloxNodeError
from flox_node.host.children import run_group
from flox_node.state.policy import Realise

MIB = 1 << 20
# Without builders and jobs of its own, Nix takes what is built already or nothing.
NEVER_BUILD = ("--option", "max-jobs", "0", "--option", "builders", "")
# Of Nix' log in JSON: the unpacked bytes of a path that is being copied, and what is expected in all.
_COPY_PATH, _PROGRESS, _EXPECTED = 100, 105, 106
_PROGRESS_END = b',"type":%d}' % _PROGRESS
_LOOK_S = 0.1
# Nix 2.26 says all sizes in MiB, later ones in what suits each.
_SIZES = re.compile(r"will be fetched \([^)]* download, +([0-9.]+) ([KMGTPE])iB unpacked\)")
_UNITS = {unit: 1024 ** (power + 1) for power, unit in enumerate("KMGTPE")}
_UNTRUSTED = re.compile(r"ignoring substitute for '(/nix/store/[^']+)' from '([^']+)', as it's not signed by")
_UNREACHABLE = re.compile(r"unable to download '([a-z0-9+]+)://([^/']*)[^']*': ([^\n]*)")
_UNKNOWN = re.compile(r"don't know how to build these paths[^:\n]*:((?:\n  /nix/store/\S+)+)")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Nix:
    """The payload's Nix: its program, the whole environment of its processes, and until when it must be done."""

    program: str
    env: Mapping[str, str]
    deadline: Deadline


def fetch(packages: Iterable[Package], nix: Nix, limits: Realise, paths: Paths, progress: Progress) -> None:
    """Have all outputs of these packages in the store. `progress` gets the bytes that came and those that are expected.

    The caller roots them before (`roots.hold`). Nix keeps each store path that came whole, whatever happens then.

    Raises:
        NotTrustedError, NotBuiltError, NetworkError, DiskFullError: by what Nix said.
        TooLargeError, DiskFullError: the policy's limits would be passed; nothing was fetched.
    """
    names = {path: package.name for package in packages for path in package.paths}
    missing = _missing(list(names), nix)
    if not missing:
        return
    expected = _expected_bytes(missing, names, nix)
    _check_room(expected, limits, paths)
    progress(0, expected)
    log = _Log(progress, expected)
    done = run_group(
        [nix.program, "build", "--no-link", "--keep-going", "--log-format", "internal-json", *NEVER_BUILD, *missing],
        env=nix.env,
        timeout=nix.deadline.left(),
        watch=log.read,
    )
    if done.timed_out:
        nix.deadline.left()
    if done.returncode:
        raise _explained("\n".join(log.messages), names, nix)


def forget_halves(packages: Iterable[Package], nix: Nix, paths: Paths) -> None:
    """Remove what the disk has of these packages and the database does not know: Flox would take it for them."""
    missing = _missing([path for package in packages for path in package.paths], nix)
    halves = [path for path in missing if os.path.lexists(paths.on_disk(path))]
    if halves:
        run_group([f"{nix.program}-store", "--delete", *halves], env=nix.env, timeout=nix.deadline.left())


def _missing(wanted: list[str], nix: Nix) -> list[str]:
    """Those that the store's database does not know. Flox asks the disk alone, where a kill leaves half a path."""
    if not wanted:
        return []
    done = run_group(
        [f"{nix.program}-store", "--check-validity", "--print-invalid", *wanted],
        env=nix.env,
        timeout=nix.deadline.left(),
        limit=MIB,
    )
    if done.timed_out:
        nix.deadline.left()
    if done.returncode:
        raise _explained(done.stderr.decode("utf-8", "replace"), {}, nix)
    return done.stdout.decode("utf-8", "replace").split()


def _expected_bytes(missing: list[str], names: Mapping[str, str], nix: Nix) -> int:
    """How many unpacked bytes have to come; asks the caches, fetches nothing."""
    done = run_group(
        [nix.program, "build", "--no-link", "--dry-run", *NEVER_BUILD, *missing],
        env=nix.env,
        timeout=nix.deadline.left(),
        limit=MIB,
    )
    if done.timed_out:
        nix.deadline.left()
    said = _ESCAPES.sub("", done.stderr.decode("utf-8", "replace"))
    if done.returncode or _UNKNOWN.search(said):
        raise _explained(said, names, nix)
    return sum(int(float(size) * _UNITS[unit]) for size, unit in _SIZES.findall(said))


def _check_room(expected: int, limits: Realise, paths: Paths) -> None:
    if expected > limits.closure_mib * MIB:
        raise TooLargeError(
            f"it needs {_mib(expected)} that are not on the node, and {limits.closure_mib:.0f} MiB are allowed."
        )
    disk = os.statvfs(paths.on_disk("/nix/store"))
    free = disk.f_bavail * disk.f_frsize
    if free - expected < limits.free_mib * MIB:
        raise DiskFullError(
            f"the node's disk has no room: {_mib(expected)} are needed, {_mib(free)} are free, and "
            f"{limits.free_mib:.0f} MiB must stay free."
        )


@dataclass
class _Log:
    """Nix' log in JSON: counts what came, keeps what was said."""

    progress: Progress
    expected: int
    messages: list[str] = field(default_factory=list)
    _copied: dict[int, int] = field(default_factory=dict)
    _latest: dict[bytes, bytes] = field(default_factory=dict)  # progress that was not looked at, by its path's id
    _due: float = 0.0

    def read(self, line: bytes) -> None:
        if not line.startswith(b"@nix "):
            return
        if not line.endswith(_PROGRESS_END):
            self._catch_up()
            self._parse(line)
            return
        # A line every few KiB: to look into each would slow down what writes them.
        self._latest[line[line.rfind(b'"id"') :]] = line
        if time.monotonic() > self._due:
            self._catch_up()

    def _catch_up(self) -> None:
        self._due = time.monotonic() + _LOOK_S
        for line in self._latest.values():
            self._parse(line)
        self._latest.clear()

    def _parse(self, line: bytes) -> None:
        try:
            event = json.loads(line[5:])
            action, kind, fields = event["action"], event.get("type"), event.get("fields", [])
            if action == "msg":
                self.messages.append(_ESCAPES.sub("", str(event["msg"])))
                del self.messages[:-200]
            elif action == "start" and kind == _COPY_PATH:
                self._copied[event["id"]] = 0
            elif action == "result" and kind == _PROGRESS and event["id"] in self._copied:
                self._copied[event["id"]] = max(self._copied[event["id"]], int(fields[0]))
                self.progress(min(sum(self._copied.values()), self.expected), self.expected)
            elif action == "result" and kind == _EXPECTED and fields[0] == _COPY_PATH:
                self.expected = max(self.expected, int(fields[1]))
        except (ValueError, TypeError, LookupError, AttributeError):
            return  # a line that another Nix writes in another way costs us a number, not the fetch


def _explained(said: str, names: Mapping[str, str], nix: Nix) -> FloxNodeError:
    if "No space left on device" in said or "Disk quota exceeded" in said or "database or disk is full" in said:
        return DiskFullError("the node's disk is full.")
    untrusted = _UNTRUSTED.search(said)
    if untrusted:
        path, cache = untrusted.groups()
        return NotTrustedError(
            f"{_named(path, names)} is not signed by a key that the node's policy trusts ({cache} has it, "
            f"signed by {_signers(path, cache, nix)})."
        )
    if "public key is not valid" in said or "public key is corrupt" in said:
        return NotTrustedError(
            "a key in nix.trusted_public_keys of the node's policy is malformed.",
            remedy="Write it as its cache shows it, and apply the policy again.",
        )
    unreachable = _UNREACHABLE.search(said)
    if unreachable:
        _, host, reason = unreachable.groups()
        return NetworkError(f"the binary cache {host or '(local)'} cannot be used: {_plain(reason)[:160]}.")
    unknown = _UNKNOWN.search(said)
    if unknown:
        shown = sorted({_named(path, names) for path in unknown.group(1).split()})
        some = ", ".join(shown[:3]) + (" and others" if len(shown) > 3 else "")
        return NotBuiltError(f"no binary cache of the node's policy has {some}, and nothing is built on a node.")
    lines = [line for line in said.splitlines() if line.startswith("error:")] or said.splitlines()[-1:]
    return BuildFailedError(f"Nix failed: {_plain(' '.join(lines))[:300] or 'and said nothing'}.")


def _signers(path: str, cache: str, nix: Nix) -> str:
    """The names of the keys that signed a path in a cache."""
    done = run_group(
        [nix.program, "path-info", "--json", "--store", cache, path],
        env=nix.env,
        timeout=min(10.0, nix.deadline.left()),
    )
    try:
        told = json.loads(done.stdout)
        entries = told.values() if isinstance(told, dict) else told
        names = {str(sign).partition(":")[0] for entry in entries for sign in entry.get("signatures", [])}
    except (ValueError, AttributeError, TypeError):
        names = set()
    return ", ".join(sorted(_plain(name)[:60] for name in names)[:3]) or "nobody"


def _named(path: str, names: Mapping[str, str]) -> str:
    """A package by the name that its environment's author gave it, or by its store path's name."""
    if path in names:
        return f"package {names[path]}"
    return path.rpartition("/")[2][33:] if is_store_path(path) else _plain(path)[:80]


def _plain(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]+", " ", text).strip().rstrip(".;")


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
