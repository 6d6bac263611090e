"""The SELinux types of all that is ours, which a repair sets anew; an install labels only what it makes.

This is no action: there is nothing to take back, and what a kill leaves undone the next repair does.
"""

from __future__ import annotations

from collections.abc import Iterator

from flox_node.actions import mount_nix
from flox_node.actions.create_directory import was_made
from flox_node.actions.install_units import FOLDER
from flox_node.actions.paths import PREFIX
from flox_node.host import Host, selinux
from flox_node.payload import Manifest
from flox_node.state.ledger import STATE_DIR
from flox_node.state.policy import PATH as POLICY


def restore(host: Host, manifest: Manifest) -> int:
    """Give every file of ours its type where SELinux is on; how many had another."""
    return sum(selinux.label_tree(host.files.root, path) for path in _owned(host, manifest))


def _owned(host: Host, manifest: Manifest) -> Iterator[str]:
    """The folders and files that are ours; of a store that was there before us, the payload's paths."""
    yield from (PREFIX, STATE_DIR, POLICY)
    yield from (f"{FOLDER}/{name}" for name in host.files.listdir(FOLDER) if name.startswith("flox-node-"))
    if mount_nix.mounted_folder(host) is not None:
        yield f"{FOLDER}/{mount_nix.UNIT}"
    if was_made(host, mount_nix.NIX):
        yield mount_nix.NIX
    else:
        yield from (path.path for path in manifest.store_paths)
