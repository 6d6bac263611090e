"""Whether nodeadm would accept its sources with our fragment: one that it refuses keeps a node out of its cluster."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from flox_node.containerd.config.edit import Edit
from flox_node.errors import RefusedError
from flox_node.host import Host

NODEADM = "/usr/bin/nodeadm"
_COPY = "/run/flox-node/nodeadm.d"
_MADE_UP = "/run/flox-node/made-up-user-data.yaml"
_CLUSTER = b"""\
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  cluster:
    name: made-up
    apiServerEndpoint: https://example.com
    certificateAuthority: Y2VydGlmaWNhdGVBdXRob3JpdHk=
    cidr: 10.100.0.0/16
"""
_USER_DATA = "imds://user-data"
_TIMEOUT_S = 30.0


def require_accepted(host: Host, edits: Sequence[Edit], folder: str) -> None:
    """Run `nodeadm config check` over a copy of `folder` with the edits in it; nothing is asked where neither is there.

    Where the user data cannot be read, or are none (in an image, say), a cluster's own fields come from made-up ones.

    Raises:
        RefusedError: it accepts the node's sources as they are, but not with the edits.
    """
    ours = [edit for edit in edits if posixpath.dirname(edit.path) == folder]
    if not ours or not host.files.exists(NODEADM):
        return
    now = {name: host.files.read_optional(f"{folder}/{name}") or b"" for name in host.files.listdir(folder)}
    then = {**now, **{posixpath.basename(edit.path): edit.after or b"" for edit in ours}}
    for user_data in (_USER_DATA, f"file://{_MADE_UP}"):
        problem = _check(host, then, user_data)
        if not problem:
            return
        # User data that cannot be fetched, or somebody else's mistake, is no reason against our fragment.
        if not _check(host, now, user_data):
            raise RefusedError(
                f"nodeadm would refuse {ours[0].path}, and the node would not join after its next boot: {problem}",
                remedy="Please report this with the NodeConfig of the node group; nothing was written.",
            )


def _check(host: Host, fragments: dict[str, bytes], user_data: str) -> str:
    host.files.remove_tree(_COPY)
    host.files.mkdir(posixpath.dirname(_COPY), 0o755)
    host.files.mkdir(_COPY, 0o700)
    try:
        host.files.write_atomic(_MADE_UP, _CLUSTER, 0o600)
        for name, data in fragments.items():
            host.files.write_atomic(f"{_COPY}/{name}", data, 0o600)
        done = host.processes.run(
            [NODEADM, "config", "check", "-c", user_data, "-c", f"file://{_COPY}"], timeout=_TIMEOUT_S
        )
    finally:
        host.files.remove_tree(_COPY)
        host.files.remove(_MADE_UP)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"it ended with {done.returncode}") if done.returncode else ""
