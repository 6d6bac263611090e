"""Why a pod does not get its environment. `code` is what the shim and the pod's event show."""

from __future__ import annotations

from flox_node.errors import OutsideError, RefusedError, UsageError


class BadRequestError(UsageError):
    """The request is malformed: the annotation, most of the time."""

    code = "bad-request"
    default_remedy = "Write the annotation flox.dev/environment as owner/name, or owner/name:3 for generation 3."


class EnvironmentNotFoundError(RefusedError):
    """FloxHub has no such environment or generation, or does not show it to this token."""

    code = "environment-not-found"
    default_remedy = "Check owner, name and generation; a private environment needs the pod's own FloxHub token."


class AccessDeniedError(RefusedError):
    """FloxHub refuses this token, or asks for one."""

    code = "access-denied"
    default_remedy = "Give the pod a valid FloxHub token that may read this environment."


class UnsupportedError(RefusedError):
    """The environment holds something that is not realised on nodes."""

    code = "unsupported"
    default_remedy = "Change the environment, then push it."


class NetworkError(OutsideError):
    """FloxHub or a binary cache did not answer properly; the kubelet tries again by itself."""

    code = "network"
    default_remedy = "The kubelet tries again; check that the node reaches FloxHub and the binary caches."


class BuildFailedError(OutsideError):
    """Flox or Nix failed."""

    code = "build-failed"
    default_remedy = "Try `flox pull` of this environment by hand; it fails in the same way."


class DeadlineError(OutsideError):
    """The environment was not there in time; what was fetched stays, the next try goes on from it."""

    code = "timeout"
    default_remedy = "The kubelet tries again and goes on from there; realise.wait_s in the node's policy is the limit."
