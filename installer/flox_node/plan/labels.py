"""The SELinux types of all that is ours, which a repair sets anew; an install labels only what it makes.

This is no action: there is nothing to take back, and what a kill leaves undone the next repair does.
"""

from __future__ import annotations

from collections.abc import Iterator

from flox_node.actions import action_from_json
from flox_node.host import Host, selinux
from flox_node.state.ledger import STATE_DIR, Ledger


def restore(host: Host, ledger: Ledger) -> int:
    """Give every file of ours its type where SELinux is on; how many had another."""
    return sum(selinux.label_tree(host.files.root, path) for path in _outermost(host, ledger))


def wrong(host: Host, ledger: Ledger) -> list[str]:
    """The files of ours that have another type than theirs."""
    return [name for path in _outermost(host, ledger) for name in selinux.wrong_labels(host.files.root, path)]


def _outermost(host: Host, ledger: Ledger) -> list[str]:
    paths = sorted({STATE_DIR, *_owned(host, ledger)})
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def _owned(host: Host, ledger: Ledger) -> Iterator[str]:
    """What the recorded actions answer for alone: of a store that was there before us, the payloads' paths."""
    for record in ledger.records.values():
        action = action_from_json(record.action)
        yield from (owned.path for owned in action.owns(host, record.before) if not owned.shared)
