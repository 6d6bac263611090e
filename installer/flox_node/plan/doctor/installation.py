"""What an install left: the receipt, the payload, the programs, the units."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flox_node.errors import FloxNodeError
from flox_node.names import BIN, CURRENT, PREFIX
from flox_node.payload import Manifest
from flox_node.payload.manifest import NAME, parse
from flox_node.payload.place import damaged
from flox_node.plan import drift
from flox_node.plan.doctor.check import Check, Verdict, ok, problem, skipped, told
from flox_node.plan.doctor.node import Node
from flox_node.state.ledger import JOURNAL, RECEIPT, STATE_DIR

OLDEST_FLOX = (1, 9, 0)
_ARMED = f"{STATE_DIR}/armed"
_UNITS = "/etc/systemd/system"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class ReceiptFacts:
    """Whether the ledger can be read, and what it and the node say about each other."""

    unreadable: str
    installed: bool
    interrupted: bool
    armed: bool
    our_files: bool


def _receipt(node: Node) -> ReceiptFacts:
    files = node.host.files
    try:
        ledger, unreadable = node.ledger, ""
    except FloxNodeError as error:
        ledger, unreadable = None, error.cause
    return ReceiptFacts(
        unreadable=unreadable,
        installed=ledger is not None and ledger.receipt is not None,
        interrupted=ledger is not None and ledger.interrupted,
        armed=files.lexists(_ARMED),
        our_files=files.lexists(PREFIX),
    )


def decide_receipt(facts: ReceiptFacts) -> Verdict:
    """A killed run, a lost or a damaged receipt: all mean that the node's state is not written down."""
    if facts.unreadable:
        return problem(facts.unreadable)
    if facts.interrupted:
        return problem(f"a run was killed, and {JOURNAL} says how far it came")
    if facts.armed:
        return problem(f"a restart of containerd was not confirmed: {_ARMED} is there")
    if facts.our_files and not facts.installed:
        return problem(f"{PREFIX} is there, but {RECEIPT} is not")
    return ok("installed" if facts.installed else "not installed")


def _drift(node: Node) -> tuple[drift.Drift, ...]:
    return drift.find(node.host, node.ledger)


def decide_drift(found: Sequence[drift.Drift]) -> Verdict:
    """Every difference from the receipt is a problem, with whose doing it looks like."""
    return told([f"{each.reason}" + (f" (looks like {each.suspect})" if each.suspect else "") for each in found])


def _content(node: Node) -> tuple[str, ...] | None:
    """What of the current payload is damaged, by digest; None without --deep or without a payload."""
    manifest = _manifest(node)
    return damaged(node.host, manifest) if node.deep and manifest is not None else None


def decide_content(found: Sequence[str] | None) -> Verdict:
    """Digests are compared only on request: it reads the whole payload."""
    if found is None:
        return skipped("digests are compared with --deep, where a payload is installed")
    return told([f"damaged: {', '.join(found)}"] if found else [])


def _flox_version(node: Node) -> str | None:
    if not node.installed or not node.host.files.lexists(f"{BIN}/flox"):
        return None
    manifest = _manifest(node)
    # The name of the store path says it; a program is started only where it does not.
    store_path = "" if manifest is None else manifest.entry_points.get("flox", "").removeprefix("/nix/store/")
    if match := _VERSION.search(store_path.partition("/")[0].partition("-")[2]):
        return match[0]
    return node.host.processes.run([f"{BIN}/flox", "--version"], timeout=20).stdout.decode(errors="replace").strip()


def decide_flox_version(version: str | None) -> Verdict:
    """Older releases end an activation's hook early, or ask whether to trust a remote environment."""
    match = _VERSION.search(version or "")
    if version is None:
        return skipped("flox-node is not installed here")
    if match is None:
        return problem(f"the Flox CLI tells no version ({version[:80]!r})")
    found = tuple(int(part) for part in match.groups())
    oldest = ".".join(map(str, OLDEST_FLOX))
    return ok(match[0]) if found >= OLDEST_FLOX else problem(f"the Flox CLI is {match[0]}, older than {oldest}")


def _units(node: Node) -> list[str]:
    names = [name for name in node.host.files.listdir(_UNITS) if name.startswith("flox-node-") or name == "nix.mount"]
    return [
        name
        for name in names
        if posixpath.splitext(name)[1] in (".service", ".timer", ".mount")
        and node.host.systemd.status(name).active == "failed"
    ]


def decide_units(failed: list[str]) -> Verdict:
    """Units of ours that failed at their last run."""
    return told([f"failed: {', '.join(failed)}"] if failed else [])


def _manifest(node: Node) -> Manifest | None:
    data = node.host.files.read_optional(f"{CURRENT}/{NAME}")
    return None if data is None else parse(data)


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "receipt",
        "what flox-node did to this node is written down, and no run was cut short",
        "`flox-node install` finishes it or writes the receipt anew, `flox-node uninstall` undoes it",
        _receipt,
        decide_receipt,
    ),
    Check(
        "drift",
        "the node is as the receipt says",
        "`flox-node plan` shows the difference, `flox-node install` repairs it; make the tool that changed it stop, or "
        "leave flox-node's lines alone",
        _drift,
        decide_drift,
    ),
    Check(
        "payload-content",
        "every byte of the payload is what was installed (--deep)",
        "`flox-node install --repair` with the same payload replaces what is damaged; then check the disk (`dmesg`)",
        _content,
        decide_content,
    ),
    Check(
        "flox-version",
        "the Flox CLI is 1.9.0 or newer",
        "install a newer payload: `flox-node install --payload FILE`",
        _flox_version,
        decide_flox_version,
    ),
    Check(
        "units",
        "flox-node's own units have not failed",
        "`journalctl -u UNIT` says why; `flox-node install` writes them anew",
        _units,
        decide_units,
    ),
)
