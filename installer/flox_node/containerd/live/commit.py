"""Commit-confirmed changes of containerd's configuration: a change that nobody confirms undoes itself.

Before anything is written, the old bytes and a record named `armed` are durable on the node, and a timer of its systemd
runs. Confirming is renaming `armed`. When the time is up before that, the timer's service renames it instead, puts the
old bytes back and restarts containerd; after a power cut a unit that is ordered before containerd does the same. Both
run one plain shell script (`actions/units/flox-node-rollback.sh`) that needs nothing of ours: not this process, not the
pod that it runs in, not /nix. The rename is the whole agreement between the three: exactly one succeeds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flox_node.errors import FloxNodeError, OutsideError, RefusedError
from flox_node.host import Host
from flox_node.state.ledger import STATE_DIR

SCRIPT = f"{STATE_DIR}/flox-node-rollback.sh"
BACKUPS = f"{STATE_DIR}/backups"
ARMED = f"{STATE_DIR}/armed"
FIRING = f"{STATE_DIR}/firing"
_CONFIRMED = f"{STATE_DIR}/confirmed"
_DEADLINE = "flox-node-deadline"
_SETTLE_S = 90.0
_STOP_S = 10.0


@dataclass(frozen=True)
class Fallback:
    """What the node goes back to.

    The bytes of each file (None: it is not there), folders that go when they are empty, the unit to restart, and the
    units that must be active then.
    """

    files: Mapping[str, bytes | None]
    folders: Sequence[str]
    unit: str
    active_units: Sequence[str]


def is_pending(host: Host) -> bool:
    """Whether a change waits for its confirmation, or is being undone."""
    return host.files.lexists(ARMED) or host.files.lexists(FIRING)


def arm(host: Host, fallback: Fallback, deadline_s: float) -> None:
    """Make sure that the node goes back to `fallback` in `deadline_s` seconds, or at its next boot, unless confirmed.

    Raises:
        RefusedError: the script is not on the node, or a path cannot be written into the record.
        OutsideError: systemd starts no timer. Nothing is armed then.
    """
    if not host.files.exists(SCRIPT):
        raise RefusedError(
            f"{SCRIPT} is not on this node, so a restart of containerd could not be undone.",
            remedy="Run `flox-node install`: it puts the script there.",
        )
    host.files.remove_tree(BACKUPS)
    host.files.mkdir(BACKUPS, 0o700)
    lines = []
    for number, (path, data) in enumerate(sorted(fallback.files.items())):
        if data is None:
            lines.append(("gone", "-", "-", path))
            continue
        backup = f"{BACKUPS}/{number}"
        host.files.write_atomic(backup, data, 0o600)
        lines.append(("file", f"backups/{number}", _permissions(host, path), path))
    lines += [("folder", "-", "-", folder) for folder in fallback.folders]
    lines.append(("restart", "-", "-", fallback.unit))
    lines += [("active", "-", "-", unit) for unit in fallback.active_units]
    if any("\t" in word or "\n" in word for line in lines for word in line):
        raise RefusedError("A path of containerd's configuration holds a tab or a line end.")
    host.files.write_atomic(ARMED, "".join("\t".join(line) + "\n" for line in lines).encode(), 0o600)
    try:
        host.systemd.run_later(
            _DEADLINE, deadline_s, ["/bin/sh", SCRIPT, "now"], "Undo a change of containerd that was not confirmed"
        )
    except FloxNodeError:
        host.files.remove(ARMED)
        raise


def confirm(host: Host) -> bool:
    """Keep what is: nothing is undone any more. False when the undoing had begun before."""
    confirmed = host.files.rename(ARMED, _CONFIRMED)
    if confirmed:
        with contextlib.suppress(FloxNodeError):  # it would find nothing to undo
            host.systemd.stop(f"{_DEADLINE}.timer", timeout=_STOP_S)
        host.files.remove(_CONFIRMED)
        host.files.remove_tree(BACKUPS)
    return confirmed


def settle(host: Host) -> bool:
    """Undo now what a killed run left unconfirmed, and wait until that is done. False when there was nothing.

    The caller holds the node's lock, so whoever armed it is dead.

    Raises:
        OutsideError: it does not end.
    """
    host.files.remove(_CONFIRMED)
    if not is_pending(host):
        return False
    host.systemd.run_later(_DEADLINE, 0.0, ["/bin/sh", SCRIPT, "now"], "Undo a change of containerd of a killed run")
    wait_until_undone(host, _SETTLE_S)
    return True


def sweep(host: Host) -> None:
    """Have systemd end the questions for a handler's features that outlive the containerd that asked them.

    It is systemd's work because a pod sees no process of the node that it could kill. The slow way back does it, too.
    """
    argv = ["/bin/sh", SCRIPT, "sweep"]
    with contextlib.suppress(FloxNodeError):  # containerd is well without it
        host.systemd.run_later(_DEADLINE, 0.0, argv, "End what hangs of a containerd that was replaced")


def wait_until_undone(host: Host, patience_s: float) -> None:
    """Wait for the timer's service to put everything back.

    Raises:
        OutsideError: it has not done so within `patience_s` seconds.
    """
    end = time.monotonic() + patience_s
    while is_pending(host):
        if time.monotonic() > end:
            raise OutsideError(
                f"The rollback of containerd's configuration does not end ({FIRING} is still there).",
                remedy=f"See `journalctl -u {_DEADLINE}.service` on the node.",
            )
        time.sleep(0.1)


def _permissions(host: Host, path: str) -> str:
    try:
        return f"{host.files.real(path).stat().st_mode & 0o7777:04o}"
    except FileNotFoundError:
        return "0644"
