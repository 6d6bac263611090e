"""One change of a containerd's configuration with the restart that makes it live: all of it, or none.

The fast way back is this process: it notices what is wrong, puts the old bytes back and restarts again. The slow way
(`commit`) is armed all the while, for when this process dies or cannot do it.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flox_node.containerd.config.edit import Edit
from flox_node.containerd.live import commit, daemon, restart
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Daemon
from flox_node.errors import FloxNodeError, OutsideError, RolledBackError
from flox_node.host import Host

_OWN_SHARE = 0.75  # of the deadline: what this process may take until it gives up and goes back by itself
_GRACE_S = 30.0  # what the slow way back may take once its time has come

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """What to write, and when it is good.

    `judge` is given what the CRI said before and after and raises what is wrong. `others` tells what the files would be
    without us, as they are now: asked when somebody else wrote one of them in the meantime.
    """

    edits: Sequence[Edit]
    judge: Callable[[CriStatus, CriStatus], None]
    others: Callable[[], Mapping[str, bytes | None]]
    deadline_s: float


def make_live(host: Host, found: Daemon, before: CriStatus, change: Change, progress: Progress) -> None:
    """Write, restart, ask the CRI, confirm. Each step is told to `progress` when it is done.

    Raises:
        ConcurrentWriteError, OSError: a file could not be written. None is, and nothing was restarted.
        RolledBackError: it is not good; the old configuration is live again.
        OutsideError: it is not good, and containerd does not come back with its old configuration either.
    """
    started = time.monotonic()
    units = restart.active_units(host, found)
    containers = restart.running_containers(host, found)
    fallback = commit.Fallback(
        files={edit.path: edit.before for edit in change.edits},
        folders=missing_folders(host, change.edits),
        unit=found.unit,
        active_units=units,
    )
    commit.arm(host, fallback, change.deadline_s)
    try:
        progress("armed")
        write_all(host, change.edits)
        progress("written")
    except (FloxNodeError, OSError):
        _take_back(host, change, fallback.folders)
        commit.confirm(host)
        raise
    try:
        after = restart.restart(host, found, units, change.deadline_s * _OWN_SHARE - (time.monotonic() - started))
        progress(_compared(containers, restart.running_containers(host, found)))
        change.judge(before, after)
        if not commit.confirm(host):
            raise OutsideError(f"The change was not confirmed within {change.deadline_s:.0f} s.")
    except (FloxNodeError, OSError) as error:
        cause = error.cause if isinstance(error, FloxNodeError) else f"{error}."
        _go_back(host, found, before, change, fallback, cause)
        raise RolledBackError(f"{cause} The old configuration is live again.") from error


def missing_folders(host: Host, edits: Sequence[Edit]) -> list[str]:
    """The folders that have to be made for the edits' files, inner ones first."""
    missing: set[str] = set()
    for edit in edits:
        folder = posixpath.dirname(edit.path)
        while edit.after is not None and not host.files.is_dir(folder):
            missing.add(folder)
            folder = posixpath.dirname(folder)
    return sorted(missing, reverse=True)


def write_all(host: Host, edits: Sequence[Edit]) -> None:
    """Write every edit, with the folders that it needs."""
    for folder in reversed(missing_folders(host, edits)):
        host.files.mkdir(folder)
    for edit in edits:
        write(host, edit.path, edit.after, expected=edit.before)
    _reload_units(host, edits)


def _reload_units(host: Host, edits: Sequence[Edit]) -> None:
    if any(edit.path.startswith("/etc/systemd/") for edit in edits):  # a drop-in that names the configuration
        host.systemd.reload()


def write(host: Host, path: str, data: bytes | None, *, expected: bytes | None = None) -> None:
    """Make a file hold these bytes, or be gone."""
    if data is None:
        host.files.remove(path)
    else:
        host.files.write_atomic(path, data, expected=expected)


def _compared(before: frozenset[str], after: frozenset[str]) -> str:
    lost = sorted(identity[:13] for identity in before - after)
    text = f"restarted: {len(before & after)} of {len(before)} containers run on"
    return f"{text}, not {', '.join(lost)}" if lost else text


def _take_back(host: Host, change: Change, folders: Sequence[str]) -> None:
    """The old bytes; where somebody else wrote since, what they wrote without what is ours."""
    for edit in reversed(change.edits):
        now = host.files.read_optional(edit.path)
        if now == edit.after:
            write(host, edit.path, edit.before)
        elif now != edit.before:
            back = _without_ours(change, edit, now)
            if back != now:
                write(host, edit.path, back)
    for folder in folders:
        if not host.files.listdir(folder):
            host.files.remove(folder)
    _reload_units(host, change.edits)


def _without_ours(change: Change, edit: Edit, now: bytes | None) -> bytes | None:
    try:
        return change.others().get(edit.path, now)
    except FloxNodeError:
        return edit.before  # it cannot be read any more: the old bytes are known to work


def _go_back(
    host: Host, found: Daemon, before: CriStatus, change: Change, fallback: commit.Fallback, cause: str
) -> None:
    try:
        _take_back(host, change, fallback.folders)
        restart.require_former(before, restart.restart(host, found, fallback.active_units, _GRACE_S))
        if commit.confirm(host):
            commit.sweep(host)
        else:
            commit.wait_until_undone(host, _GRACE_S)
    except (FloxNodeError, OSError):
        _wait_for_the_slow_way(host, found, before, change, cause)


def _wait_for_the_slow_way(host: Host, found: Daemon, before: CriStatus, change: Change, cause: str) -> None:
    try:
        commit.wait_until_undone(host, change.deadline_s + _GRACE_S)
        restart.require_former(before, daemon.cri(host, found.socket).wait(_GRACE_S))
    except FloxNodeError as error:
        paths = ", ".join(edit.path for edit in change.edits) or found.config_path
        raise OutsideError(
            f"{cause} The old configuration is back in {paths}, but: {error.cause}",
            remedy=f"See `journalctl -u {found.unit} -u flox-node-deadline` on the node.",
        ) from error
