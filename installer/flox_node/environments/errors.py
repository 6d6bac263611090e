"""Why a pod does not get its environment. `code` is what the shim, the pod's event and the node's log show.

`final`: waiting does not help, so the pod's containers fail at once. The others may pass by themselves: the sandbox
fails, and the kubelet tries again. docs/reference.md lists all codes.
"""

from __future__ import annotations

from typing import ClassVar

from flox_node.errors import CorruptError, FloxNodeError, OutsideError, RefusedError, UsageError


class BadRequestError(UsageError):
    """The request is malformed: the annotation, most of the time."""

    code = "bad-request"
    final: ClassVar[bool] = True
    default_remedy = "Write the annotation flox.dev/environment as owner/name, or owner/name:3 for generation 3."


class NotAllowedError(RefusedError):
    """The node's policy does not allow it for pods of this namespace."""

    code = "not-allowed"
    final: ClassVar[bool] = True
    default_remedy = (
        "Ask the cluster's administrator: `pods` and `namespaces` in the node's policy say what is allowed."
    )


class EnvironmentNotFoundError(RefusedError):
    """FloxHub has no such environment or generation, or does not show it to this token."""

    code = "environment-not-found"
    final: ClassVar[bool] = True
    default_remedy = "Check owner, name and generation; a private environment needs the pod's own FloxHub token."


class AccessDeniedError(RefusedError):
    """FloxHub refuses this token, or asks for one."""

    code = "access-denied"
    final: ClassVar[bool] = True
    default_remedy = "Give the pod a valid FloxHub token that may read this environment."


class TokenExpiredError(RefusedError):
    """The pod's token says itself that it has expired."""

    code = "token-expired"
    final: ClassVar[bool] = True
    default_remedy = "Make the pod's secret anew from the output of `flox auth token`."


class UnsupportedError(RefusedError):
    """The environment holds something that is not realised on nodes."""

    code = "unsupported"
    final: ClassVar[bool] = True
    default_remedy = "Change the environment, then push it."


class ConflictError(RefusedError):
    """Two packages of the environment hold the same file."""

    code = "conflict"
    final: ClassVar[bool] = True
    default_remedy = "Uninstall one of them or give them different priorities, then push the environment."


class NotTrustedError(RefusedError):
    """A package is not signed by a key that the policy trusts."""

    code = "not-trusted"
    final: ClassVar[bool] = True
    default_remedy = (
        "Add the cache's key to nix.extra_trusted_public_keys of the node's policy, if it is to be trusted."
    )


class NotBuiltError(RefusedError):
    """No cache of the policy has a package, and nothing is built on a node."""

    code = "not-built"
    final: ClassVar[bool] = True
    default_remedy = "Put it into a binary cache that nix.substituters of the node's policy names."


class TooLargeError(RefusedError):
    """The closure is larger than the policy allows."""

    code = "too-large"
    final: ClassVar[bool] = True
    default_remedy = "realise.closure_mib in the node's policy is the limit."


class DiskFullError(OutsideError):
    """The node's disk has no room."""

    code = "disk-full"
    default_remedy = "`flox-node gc` on the node frees what no pod uses; realise.free_mib in its policy is kept free."


class NetworkError(OutsideError):
    """FloxHub or a binary cache did not answer properly; the kubelet tries again by itself."""

    code = "network"
    default_remedy = "The kubelet tries again; check that the node reaches FloxHub and the binary caches."


class BuildFailedError(OutsideError):
    """Flox or Nix failed."""

    code = "build-failed"
    default_remedy = "Try `flox pull` of this environment by hand; it fails in the same way."


class FetchingError(OutsideError):
    """The environment is still being fetched; the next try joins the same fetch."""

    code = "fetching"
    default_remedy = "The kubelet tries again and joins this fetch; realise.wait_s in the node's policy is the wait."


class DeadlineError(OutsideError):
    """Something took longer than the policy allows."""

    code = "timeout"
    default_remedy = (
        "The kubelet tries again; what was fetched stays. realise.time_s in the node's policy is the limit."
    )


KINDS: tuple[type[FloxNodeError], ...] = (
    BadRequestError, NotAllowedError, EnvironmentNotFoundError, AccessDeniedError, TokenExpiredError, UnsupportedError,
    ConflictError, NotTrustedError, NotBuiltError, TooLargeError, DiskFullError, NetworkError, BuildFailedError,
    FetchingError, DeadlineError, CorruptError,
)  # fmt: skip
CODES = frozenset(kind.code for kind in KINDS)


def is_final(error: FloxNodeError) -> bool:
    """Whether trying again is of no use."""
    return bool(getattr(error, "final", False))


def of_the_node(error: OSError) -> FloxNodeError:
    """What it means that the node refused a file."""
    import errno

    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"the node's disk has no room, or no inodes, or its quota is used up{where}.")
    if error.errno == errno.EROFS:
        return BuildFailedError(
            f"the node's disk is mounted read-only{where}.", remedy="Look for the reason with `dmesg`, and remount it."
        )
    if error.errno == errno.EIO:
        return BuildFailedError(f"the node's disk fails{where}.", remedy="Look at `dmesg`; replace the node.")
    return BuildFailedError(
        f"the node refused a file: {error.strerror or error}{where}.",
        remedy="`flox-node doctor` on the node says more.",
    )
