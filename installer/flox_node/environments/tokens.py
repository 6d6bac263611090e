"""The pod's own FloxHub token, from its volumes.

At the time of the sandbox no container and no mount of it exists, but the kubelet has made the pod's volumes already. A
file `floxhub-token` in a secret, projected or CSI volume counts. What an init container or an agent beside the pod's
containers writes (Vault's agent) comes later than the sandbox: it cannot be seen here. The shim reads the same files
(shim/internal/realise/token.go).
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator

from flox_node.environments.errors import BadRequestError, TokenExpiredError
from flox_node.environments.paths import Paths

_FILE = "floxhub-token"
# A volume's folder below the kubelet's folder of its kind. A CSI driver mounts into it.
_KINDS = {"kubernetes.io~secret": "", "kubernetes.io~projected": "", "kubernetes.io~csi": "/mount"}
_LARGEST = 1 << 14
_OPAQUE = re.compile(rb"flox_[A-Za-z0-9._~+/=-]+")
_JWT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


def find(pod_uid: str, paths: Paths, kubelet_root: str | None = None) -> str | None:
    """The token in the pod's volumes, without the line end that `flox auth token` leaves; None when it has none.

    Raises:
        BadRequestError: two volumes hold different tokens, or one holds something that is no token.
        TokenExpiredError: it says itself that its time is over.
    """
    if not pod_uid:
        return None
    found = {token for folder in paths.pod_volumes(pod_uid, kubelet_root) for token in _tokens(folder)}
    if len(found) > 1:
        raise BadRequestError(
            f"the pod's volumes hold {len(found)} different {_FILE} files.",
            remedy="Give the pod one secret with a FloxHub token.",
        )
    return found.pop() if found else None


def keep_in_memory() -> None:
    """Neither this process nor what it starts from here on leaves its memory on the disk when it crashes."""
    import resource

    # 1, not 0: the kernel runs programs that take core dumps (systemd-coredump) even at 0.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, resource.getrlimit(resource.RLIMIT_CORE)[1] or 1))


def _tokens(volumes: str) -> Iterator[str]:
    volumes = os.path.realpath(volumes)  # the kubelet's root may be a link
    for kind, below in _KINDS.items():
        try:
            names = os.listdir(f"{volumes}/{kind}")
        except OSError:
            continue
        for name in sorted(names):
            data = _read(f"{volumes}/{kind}/{name}{below}")
            if data is not None:
                yield checked(data, f"{_FILE} in the pod's volume {name[:80]!a}")


def checked(data: bytes, what: str) -> str:
    """The token in the content of a file. A malformed one is never sent: it may be another secret by mistake.

    Raises:
        BadRequestError: it is no token; TokenExpiredError: its time is over.
    """
    keep_in_memory()
    token = data.strip()
    if _OPAQUE.fullmatch(token):
        return token.decode("ascii")
    claims = _claims(token) if _JWT.fullmatch(token) else None
    if claims is None:
        raise BadRequestError(
            f"{what} is no token.",
            remedy="Make the secret anew from the output of `flox auth token`.",
        )
    expires = claims.get("exp")
    if isinstance(expires, int | float) and expires <= time.time():
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(expires))
        raise TokenExpiredError(f"the pod's FloxHub token expired at {when} UTC.")
    return token.decode("ascii")


def _claims(token: bytes) -> dict[str, object] | None:
    """What a JWT says; None when it is none. Nobody here can check its signature."""
    parts = []
    for part in token.split(b".")[:2]:
        try:
            parts.append(json.loads(binascii.a2b_base64(part.translate(_URL_SAFE) + b"=" * (-len(part) % 4))))
        except ValueError:
            return None
    if not all(isinstance(part, dict) for part in parts) or "alg" not in parts[0]:
        return None
    claims: dict[str, object] = parts[1]
    return claims


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _read(volume: str) -> bytes | None:
    file = os.path.realpath(f"{volume}/{_FILE}")  # the kubelet links it to ..data, and that to the folder of today
    inside = f"{volume}/"
    if os.path.realpath(volume) != volume or not file.startswith(inside):
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # What somebody else may write into could be another file by now than the one that was looked at.
        really = os.readlink(f"/proc/self/fd/{descriptor}").startswith(inside)
        return os.read(descriptor, _LARGEST) if really and stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)
