"""A containerd that our own registration keeps down: another release of it lies under what was made for the old one.

A drop-in of containerd 2 replaces the whole CRI table of a containerd 1, say. Package managers have no hook that is
ours to place, so it is noticed afterwards: at boot, by an install, by the agent's look. Then the handler is taken out
(that needs no answering CRI) and registered again for the containerd that is there.
"""

from __future__ import annotations

import time

from flox_node.actions import RegisterHandler, action_from_json
from flox_node.containerd.config.effective import load
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live import daemon
from flox_node.errors import FloxNodeError, OutsideError
from flox_node.host import Host
from flox_node.plan.steps import Report, take_back
from flox_node.state.ledger import Ledger, Record


class OursToBlameError(OutsideError):
    """The CRI does not answer, and without our registration it would."""

    default_remedy = (
        "`flox-node install` takes the handler out and registers it for this containerd; `flox-node uninstall` only "
        "takes it out."
    )


def blame(host: Host, ledger: Ledger, *, certainly: bool = False) -> OursToBlameError | None:
    """Why this node's CRI is down, where that is our registration's doing; None where it answers or we are not it.

    `certainly`: only what the model shows; else also that it is another release than the one we registered with.
    """
    found = registered(ledger)
    if found is None:
        return None
    _, action = found
    try:
        daemon.cri(host, action.socket).status()
    except FloxNodeError:
        pass
    else:
        return None
    try:
        _, version = action.identify(host)
        root = action.registration.config
        with_us = load(root, host.files, version)
        without_us = load(root, action.without_us(host, version), version)
    except FloxNodeError:
        return None
    made_for = ContainerdVersion.parse(action.version) if action.version else version
    is_another = (made_for.major, made_for.minor) != (version.major, version.minor)
    if without_us.state != "ok":
        return None
    if with_us.state == "ok" and (certainly or not is_another or _may_be_starting(host, action)):
        return None
    reason = next((finding.text for finding in with_us.findings if finding.severity == "error"), "")
    return OursToBlameError(
        f"containerd is {version} now, and the handler was registered for {made_for}: its CRI does not load."
        + (f" {reason}" if reason else "")
    )


def why_down(host: Host, error: FloxNodeError, socket: str | None) -> FloxNodeError:
    """The error of a CRI that does not answer, with the reason where the files of its configuration are it."""
    if not isinstance(error, OutsideError):
        return error
    try:
        found = daemon.find(host, daemon.cri_socket(host, socket), patience_s=0)
        effective = load(found.config_path, host.files, daemon.version_of(host, found.exe))
    except FloxNodeError:
        return error
    if effective.state == "ok":
        return error
    worst = next(finding for finding in effective.findings if finding.severity == "error")
    line = f", line {worst.line}" if worst.line else ""
    return OutsideError(
        f"{error.cause} {worst.file}{line}: {worst.text}",
        remedy=f"Repair that file and restart {found.unit}; `flox-node containerd explain` shows what it comes to.",
    )


def _may_be_starting(host: Host, action: RegisterHandler) -> bool:
    process = host.processes.socket_owner(action.socket)
    started = host.processes.started_at(process.pid) if process else None
    return started is not None and time.time() < started + action.deadline_s


def heal(host: Host, ledger: Ledger, report: Report) -> bool:
    """Take the handler out of a containerd that it keeps down; False where that is not so.

    Raises:
        OutsideError: it cannot be taken out.
    """
    found = registered(ledger)
    if found is None or blame(host, ledger) is None:
        return False
    take_back(host, ledger, found[0], report, purge=False, waiting=False)
    return True


def registered(ledger: Ledger) -> tuple[Record, RegisterHandler] | None:
    """The record of the handler's registration; None where there is none."""
    for record in ledger.records.values():
        if record.action["kind"] == RegisterHandler.kind:
            action = action_from_json(record.action)
            assert isinstance(action, RegisterHandler), "its kind says so"
            return record, action
    return None
