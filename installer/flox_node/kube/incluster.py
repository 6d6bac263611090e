"""The API server as a pod sees it, over the standard library alone.

A pod of every node asks now and then and exits again. `kubernetes` costs 200 ms of CPU and 45 MiB to import, `requests`
77 ms and 26 MiB, this 29 ms and 17 MiB.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

from flox_node.errors import UsageError
from flox_node.kube.api import ApiError, Object

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_JSON = "application/json"
_LIMIT = 64 << 20  # bytes of an answer: whatever is larger is not what we asked for
_LINE_LIMIT = 4 << 20
_TRIES = 6
_LONGEST_PAUSE_S = 10


class InCluster:
    """An `Api` with the service account's token, which is read anew for each request: the kubelet rotates it."""

    def __init__(self, account: Path = ACCOUNT, environment: Mapping[str, str] = os.environ) -> None:
        """account: the folder with `token` and `ca.crt`.

        Raises:
            UsageError: this is no pod with a service account.
        """
        try:
            self._address = environment["KUBERNETES_SERVICE_HOST"], int(environment["KUBERNETES_SERVICE_PORT"])
            self._tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except (KeyError, ValueError, OSError) as error:
            raise UsageError(f"This is no pod with a service account: {type(error).__name__}: {error}.") from error
        self._account = account

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
        """See `Api.request`. A server that is too busy is asked again after the time that it names."""
        for attempt in range(_TRIES):
            with (
                _reported(method, path),
                self._answer(method, path, body, content_type, query or {}, timeout) as answer,
            ):
                if answer.status != http.HTTPStatus.TOO_MANY_REQUESTS or attempt == _TRIES - 1:
                    return _object(method, path, answer)
                pause_s = _retry_after_s(answer)
            time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        """See `Api.watch`."""
        end = time.monotonic() + timeout_s
        asked = {**query, "watch": "1", "timeoutSeconds": str(max(1, int(timeout_s)))}
        with _reported("WATCH", path), self._answer("GET", path, None, _JSON, asked, timeout_s + 10) as answer:
            if answer.status != http.HTTPStatus.OK:
                _object("WATCH", path, answer)
            while time.monotonic() < end and (line := answer.readline(_LINE_LIMIT)):
                event: Object = json.loads(line)
                yield event

    def _identity(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self._account / 'token').read_text().strip()}"}

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: object, content_type: str, query: Mapping[str, str], timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {**self._identity(), "Accept": _JSON, "User-Agent": "flox-node"}
        if body is not None:
            headers["Content-Type"] = content_type
        data = None if body is None else json.dumps(body).encode()
        target = f"{path}?{urlencode(query)}" if query else path
        # One connection a request: there are ten of them in an install, and an idle one may be closed at any time.
        with contextlib.closing(
            http.client.HTTPSConnection(*self._address, context=self._tls, timeout=timeout)
        ) as connection:
            connection.request(method, target, data, headers)
            yield connection.getresponse()


def _object(method: str, path: str, answer: http.client.HTTPResponse) -> Object:
    data = answer.read(_LIMIT)
    if answer.status >= http.HTTPStatus.BAD_REQUEST:
        raise _refused(method, path, answer, data)
    said = json.loads(data) if data else {}
    if not isinstance(said, dict):
        raise TypeError(f"{method} {path} was answered with no object")
    return said


def _refused(method: str, path: str, answer: http.client.HTTPResponse, data: bytes) -> ApiError:
    """The error of an answer: a Status object, or (429, a proxy on the way) plain text."""
    said: dict[str, object] = {}
    with contextlib.suppress(ValueError, TypeError):
        said = dict(json.loads(data))
    text = str(said.get("message") or data[:200].decode(errors="replace").strip() or answer.reason)
    reason = str(said.get("reason") or answer.reason)
    return ApiError(f"The API server refused {method} {path}: {text}", status=answer.status, reason=reason)


def _retry_after_s(answer: http.client.HTTPResponse) -> float:
    told = answer.headers.get("Retry-After") or ""
    seconds = int(told) if told.isascii() and told.isdigit() else 1
    return random.uniform(1.0, 2.0) * min(seconds, _LONGEST_PAUSE_S)  # not all of them at the same time again


@contextlib.contextmanager
def _reported(method: str, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        raise ApiError(f"The API server does not answer {method} {path}: {type(error).__name__}: {error}") from error
