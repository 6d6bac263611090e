"""What of a node is no longer as the receipt says, and whose doing that looks like.

Nobody signs a file, so the author is told by marks: lines that only one tool writes, bytes that were there before us,
and when it happened beside the node's boot. It is a hint for a person, and the text says so by naming its evidence.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flox_node.actions import Action, action_from_json
from flox_node.errors import FloxNodeError
from flox_node.host import Host
from flox_node.platforms import Renderer, SignKind, all_platforms
from flox_node.state.ledger import Ledger, Record

_AT_BOOT_S = 300.0  # cloud-init and nodeadm are done by then; the kubelet's own start is part of it


@dataclass(frozen=True)
class Drift:
    """One thing that is not as the receipt says. `suspect` is whose doing it looks like and why, or empty."""

    key: str
    reason: str
    suspect: str = ""


@dataclass(frozen=True)
class Difference:
    """A file that is not what we wrote. Bytes are None where there is no file; times in seconds since the epoch.

    `renderers` are those of platforms whose files this node has.
    """

    path: str
    before_us: bytes | None
    now: bytes | None
    changed_at: float | None
    booted_at: float | None
    renderers: tuple[Renderer, ...] = ()


def find(host: Host, ledger: Ledger) -> tuple[Drift, ...]:
    """Every action of the receipt that the node no longer is as it left it. Reads names and small files, no digests."""
    found = []
    for record in ledger.records.values():
        action: Action[Any] | None = None
        try:
            action = action_from_json(record.action)
            gap = action.inspect(host)
            reason = gap.reason if gap else "" if record.done else "an interrupted run left it half done"
            paths = gap.paths if gap else ()
        except FloxNodeError as error:
            reason, paths = error.cause, ()
        if reason:
            suspects = _suspects(host, action, record, paths) if action and record.done else ""
            found.append(Drift(record.key, reason, suspects))
    return tuple(found)


def suspect(change: Difference) -> str:
    """Whose doing a change looks like, with the evidence; empty where nothing hints at anybody."""
    when = _when(change)
    now, before = change.now, change.before_us
    if now is None:
        return f"somebody removed {change.path}{when}"
    head, old = now[:400].lower(), before or b""
    at_boot = _after_boot(change) is not None
    for each in change.renderers:
        if any(mark in head for mark in each.marks):
            return f"{each.name}, which writes {change.path} {each.when} (its first lines say so){when}"
        if not each.marks and at_boot and fnmatch.fnmatchcase(change.path, each.files):
            return f"{each.name}, which writes {change.path} {each.when}{when}"
    for tool, mark in (
        ("NVIDIA's container toolkit", b"nvidia-container-runtime"),
        ("kata-deploy", b"kata"),
        ("the Flox containerd shim installer", b"containerd-shim-flox"),
    ):
        if mark in now and mark not in old:
            return f"{tool} (the file has lines of it now that it had not before){when}"
    if before is not None and now == before:
        return f"whoever keeps the former {change.path}: a configuration management or a restored backup{when}"
    if at_boot:
        return f"something that runs at boot{when}"
    return f"unknown{when}" if when else ""


def _suspects(host: Host, action: Action[Any], record: Record, paths: Sequence[str]) -> str:
    boot = host.processes.started_at(1)
    renderers = tuple(_renderers(host))
    before_us = {owned.path: owned.before_us for owned in action.owns(host, record.before)}
    texts = []
    for path in paths:
        status = host.files.lstat(path)
        now = None if status is None else host.files.read_optional(path) if not host.files.is_dir(path) else b""
        changed_at = None if status is None else status.st_ctime
        texts.append(suspect(Difference(path, before_us.get(path), now, changed_at, boot, renderers)))
    return "; ".join(dict.fromkeys(filter(None, texts)))


def _renderers(host: Host) -> Iterator[Renderer]:
    for platform in all_platforms():
        files = [path for sign in platform.signs if sign.kind is SignKind.FILE for path in sign.pattern.split("|")]
        if platform.renderer and (platform.renderer.marks or any(map(host.files.exists, files))):
            yield platform.renderer


def _when(change: Difference) -> str:
    if change.changed_at is None:
        return ""
    moment = datetime.fromtimestamp(change.changed_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    after = _after_boot(change)
    return f", changed {moment}" + (f", {after:.0f} s after the node's boot" if after is not None else "")


def _after_boot(change: Difference) -> float | None:
    """Seconds between the boot and the change, where the boot can have to do with it."""
    if change.changed_at is None or change.booted_at is None:
        return None
    after = change.changed_at - change.booted_at
    return after if 0 <= after <= _AT_BOOT_S else None
