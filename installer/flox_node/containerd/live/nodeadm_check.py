"""Whether nodeadm would accept its sources with our fragment: one that it refuses keeps a node out of its cluster."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from flox_node.containerd.config.edit import Edit
from flox_node.errors import RefusedError
from flox_node.host import Host

NODEADM = "/usr/bin/nodeadm"
_COPY = "/run/flox-node/nodeadm.d"
_USER_DATA = "imds://user-data"
_TIMEOUT_S = 30.0


def require_accepted(host: Host, edits: Sequence[Edit], folder: str) -> None:
    """Run `nodeadm config check` over a copy of `folder` with the edits in it; nothing is asked where neither is there.

    Raises:
        RefusedError: it accepts the node's sources as they are, but not with the edits.
    """
    ours = [edit for edit in edits if posixpath.dirname(edit.path) == folder]
    if not ours or not host.files.exists(NODEADM):
        return
    now = {name: host.files.read_optional(f"{folder}/{name}") or b"" for name in host.files.listdir(folder)}
    then = {**now, **{posixpath.basename(edit.path): edit.after or b"" for edit in ours}}
    problem = _check(host, then)
    # User data that cannot be fetched, or somebody else's mistake, is no reason against our fragment.
    if problem and not _check(host, now):
        raise RefusedError(
            f"nodeadm would refuse {ours[0].path}, and the node would not join after its next boot: {problem}",
            remedy="Please report this with the NodeConfig of the node group; nothing was written.",
        )


def _check(host: Host, fragments: dict[str, bytes]) -> str:
    host.files.remove_tree(_COPY)
    host.files.mkdir(_COPY, 0o700)
    try:
        for name, data in fragments.items():
            host.files.write_atomic(f"{_COPY}/{name}", data, 0o600)
        done = host.processes.run(
            [NODEADM, "config", "check", "-c", _USER_DATA, "-c", f"file://{_COPY}"], timeout=_TIMEOUT_S
        )
    finally:
        host.files.remove_tree(_COPY)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"it ended with {done.returncode}") if done.returncode else ""
