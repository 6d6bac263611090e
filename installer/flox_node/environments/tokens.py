"""The pod's own FloxHub token, from its secret volumes.

At the time of the sandbox no container and no mount exists, but the kubelet has made the pod's volumes already. Only
what the kubelet itself writes is looked at (secret and projected volumes): a pod cannot put a symlink there.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from flox_node.environments.errors import BadRequestError
from flox_node.environments.paths import Paths

_FILE = "floxhub-token"
_KINDS = ("kubernetes.io~secret", "kubernetes.io~projected")
_LARGEST = 1 << 14
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+")


def find(pod_uid: str, paths: Paths) -> str | None:
    """The token in the pod's volumes, without the line end that `flox auth token` leaves; None when it has none.

    Raises:
        BadRequestError: two volumes hold different tokens, or one holds something that is no token.
    """
    if not pod_uid:
        return None
    found = {token for folder in paths.pod_volumes(pod_uid) for token in _tokens(folder)}
    if len(found) > 1:
        raise BadRequestError(
            f"the pod's volumes hold {len(found)} different {_FILE} files.",
            remedy="Give the pod one secret with a FloxHub token.",
        )
    return found.pop() if found else None


def _tokens(volumes: str) -> Iterator[str]:
    for kind in _KINDS:
        try:
            names = os.listdir(f"{volumes}/{kind}")
        except OSError:
            continue
        for name in sorted(names):
            data = _read(f"{volumes}/{kind}/{name}")
            if data is None:
                continue
            if not _TOKEN.fullmatch(data.strip()):
                raise BadRequestError(
                    f"{_FILE} in the pod's volume {name[:80]!a} is no token.",
                    remedy="Make the secret anew from the output of `flox auth token`.",
                )
            yield data.strip().decode("ascii")


def _read(volume: str) -> bytes | None:
    file = os.path.realpath(f"{volume}/{_FILE}")  # the kubelet links it to ..data, and that to the folder of today
    if not file.startswith(f"{os.path.realpath(volume)}/"):
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(_LARGEST) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
