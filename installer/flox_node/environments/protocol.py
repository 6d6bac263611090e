"""The request that the shim makes, and the answer that it gets: one JSON object each."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from flox_node.environments.errors import CODES, BadRequestError, BuildFailedError, is_final, of_the_node
from flox_node.environments.index import Resolution
from flox_node.environments.reference import Reference
from flox_node.errors import FloxNodeError, OutsideError

SCHEMA_VERSION = 1
REQUEST_VERSION = 2
LARGEST_REQUEST = 1 << 16
_LONGEST_MESSAGE = 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}")
_BLANKS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Request:
    """What a sandbox asks for: environment and mode, for the pod with this uid in this namespace."""

    reference: Reference
    mode: str
    pod_uid: str
    namespace: str = ""
    pod_name: str = ""

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Read a request. Everything in it comes from a pod's annotations, so nothing is taken on trust.

        Raises:
            BadRequestError: malformed.
        """
        if len(data) > LARGEST_REQUEST:
            raise BadRequestError("the request is too large.")
        try:
            raw: Any = json.loads(data)
        except ValueError as error:
            raise BadRequestError("the request is not JSON.") from error
        if not isinstance(raw, dict) or raw.get("schema_version") != REQUEST_VERSION:
            raise BadRequestError("the request has an unknown form.", remedy="Restart the pod: the node was upgraded.")
        reference, mode = raw.get("reference"), raw.get("mode")
        if not isinstance(reference, str):
            raise BadRequestError("the request names no environment.")
        if mode not in ("run", "dev"):
            raise BadRequestError(f"the mode {str(mode)[:40]!a} is unknown: it is run or dev.")
        return cls(Reference.parse(reference), mode, *_pod(raw.get("pod")))


def _pod(pod: Any) -> tuple[str, str, str]:
    names = ("namespace", "name", "uid", "sandbox_id")
    if not isinstance(pod, dict) or not all(isinstance(pod.get(name), str) for name in names):
        raise BadRequestError("the request names no pod.")
    if not _ID.fullmatch(pod["sandbox_id"]):
        raise BadRequestError("the request names no sandbox.")
    # Pods that no kubelet made (crictl) have any uid, and no volumes; as a file name it must be harmless.
    return pod["uid"] if _ID.fullmatch(pod["uid"]) else "", pod["namespace"], pod["name"]


def success(resolution: Resolution, warning: str | None = None) -> dict[str, Any]:
    """The answer that lets the sandbox go on. `warning` is a line for the node's log and the pod's event."""
    said = {"warning": warning} if warning else {}
    return {"schema_version": SCHEMA_VERSION, "ok": True, "resolution": asdict(resolution), **said}


def failure(error: Exception, subject: str | None) -> dict[str, Any]:
    """The answer that fails the sandbox: one line of at most 1 KiB for the event. `subject` is the environment."""
    if isinstance(error, OSError):
        error = of_the_node(error)
    if not isinstance(error, FloxNodeError):
        error = FloxNodeError(f"flox-node failed with a {type(error).__name__}.")
    if type(error) is OutsideError:  # a program of the payload that does not start, say
        error = BuildFailedError(error.cause, remedy=error.remedy)
    text = _BLANKS.sub(" ", f"{error.cause} {error.remedy}").strip()
    if subject:
        text = f"environment {subject}: {text}"
    return {
        "schema_version": SCHEMA_VERSION,
        "ok": False,
        "code": error.code if error.code in CODES else "bug",
        "final": is_final(error),
        "message": text.encode("utf-8", "replace")[:_LONGEST_MESSAGE].decode("utf-8", "ignore"),
    }
