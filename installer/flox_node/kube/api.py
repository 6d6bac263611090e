"""The seam to the API server: one request, one watch. Objects are plain JSON, as `kubectl get -o json` prints them.

A fake of these two methods is all that a test of a caller needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from flox_node.errors import OutsideError

Object = dict[str, Any]

JSON_PATCH = "application/json-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # server-side apply; JSON is YAML
_JSON = "application/json"


class ApiError(OutsideError):
    """The API server refused a request, or could not be reached (`status` 0, `reason` then is "Unreachable").

    `status` is the HTTP status, `reason` the API's word for it ("NotFound", "AlreadyExists", "Conflict", "Forbidden",
    "Invalid", ...): https://kubernetes.io/docs/reference/using-api/api-concepts/. `details` are those of its answer.
    """

    default_remedy = "Try again when the API server answers; `kubectl get --raw /readyz` tells."

    def __init__(
        self,
        cause: str,
        *,
        status: int = 0,
        reason: str = "Unreachable",
        remedy: str = "",
        details: Object | None = None,
    ) -> None:
        super().__init__(cause, remedy=remedy)
        self.status = status
        self.reason = reason
        self.details = details or {}


class Api(Protocol):
    """An API server."""

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = _JSON,
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Object:
        """Send one request; the object of the answer. `body` is sent as JSON, whatever `content_type` says it means.

        Raises:
            ApiError: it was refused, or nobody answered within `timeout` seconds.
        """
        ...

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        """The events (`{"type", "object"}`) of a collection, until `timeout_s` seconds have passed.

        Raises:
            ApiError: it was refused, or the connection broke.
        """
        ...
