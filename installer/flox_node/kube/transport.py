"""What the two clients of an API server have in common: asking again, reading answers, and telling refusals."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from flox_node.kube.api import ApiError, Object

_JSON = "application/json"
_BUSY = 429
_LIMIT = 64 << 20  # bytes of an answer: whatever is larger is not what we asked for
_LINE_LIMIT = 4 << 20
_TRIES = 6
_LONGEST_PAUSE_S = 10


class Answer(Protocol):
    """An HTTP answer whose body is still to be read."""

    @property
    def status(self) -> int:
        """Its status."""
        ...

    @property
    def reason(self) -> str | None:
        """What the server calls it."""
        ...

    @property
    def headers(self) -> Any:
        """Its headers, found however they are spelt by `get`."""
        ...

    def read(self, amount: int, /) -> bytes:
        """At most so many bytes, all there are."""
        ...

    def readline(self, limit: int, /) -> bytes:
        """The next line, b"" at the end."""
        ...


class Transport:
    """An `Api` over HTTP. A subclass opens connections, and says which errors mean that there was none."""

    server = "The API server"
    remedies: Mapping[int, str] = {}
    """What to do about a refusal, by its status."""

    def open(
        self,
        method: str,
        target: str,
        body: object,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        timeout: float,
    ) -> contextlib.AbstractContextManager[Answer]:
        """Send one request. `body` is sent as JSON, None is none."""
        raise NotImplementedError

    def unreachable(self) -> tuple[type[Exception], ...]:
        """What `open` and reading an answer raise where no API server answers; ValueError for what is none."""
        return (OSError, ValueError, TypeError)

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
        with self._answered(method, path, body, content_type, query or {}, timeout) as answer:
            found = json.loads(answer.read(_LIMIT) or b"{}")
            if not isinstance(found, dict):
                raise TypeError("with no object")
            return found

    def text(self, path: str, *, query: Mapping[str, str] | None = None, timeout: float = 30.0) -> str:
        """What is no object: a container's log.

        Raises:
            ApiError: as of `request`.
        """
        with self._answered("GET", path, None, "", query or {}, timeout) as answer:
            return answer.read(_LIMIT).decode(errors="replace")

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        """See `Api.watch`."""
        end = time.monotonic() + timeout_s
        asked = {**query, "watch": "1", "timeoutSeconds": str(max(1, int(timeout_s)))}
        with self._answered("GET", path, None, _JSON, asked, timeout_s + 10) as answer:
            while time.monotonic() < end and (line := answer.readline(_LINE_LIMIT)):
                event: Object = json.loads(line)
                yield event

    @contextlib.contextmanager
    def _answered(
        self, method: str, path: str, body: object, content_type: str, query: Mapping[str, str], timeout: float
    ) -> Iterator[Answer]:
        headers = {"Accept": _JSON if content_type else "*/*"} | (
            {} if body is None else {"Content-Type": content_type}
        )
        try:
            for attempt in range(_TRIES):
                with self.open(method, path, body, headers, query, timeout) as answer:
                    if answer.status != _BUSY or attempt == _TRIES - 1:
                        if answer.status >= 400:
                            raise self._refused(method, path, answer)
                        yield answer
                        return
                    pause_s = _retry_after_s(answer)
                time.sleep(pause_s)
        except ApiError:
            raise
        except self.unreachable() as error:
            why = f"{type(error).__name__}: {error}"
            raise ApiError(f"{self.server} does not answer {method} {path}: {why}") from error

    def _refused(self, method: str, path: str, answer: Answer) -> ApiError:
        """The error of an answer: a Status object, or (429, a group that is not served, a proxy) plain text."""
        data = answer.read(_LIMIT)
        said: Object = {}
        with contextlib.suppress(ValueError, TypeError):
            said = dict(json.loads(data))
        text = said.get("message") or data[:500].decode(errors="replace").strip() or answer.reason
        return ApiError(
            f"The API server refused {method} {path}: {text}",
            status=answer.status,
            reason=str(said.get("reason") or answer.reason),
            remedy=self.remedies.get(answer.status, ""),
            details=said.get("details"),
        )


def _retry_after_s(answer: Answer) -> float:
    told = answer.headers.get("Retry-After") or ""
    seconds = int(told) if told.isascii() and told.isdigit() else 1
    return random.uniform(1.0, 2.0) * min(seconds, _LONGEST_PAUSE_S)  # not all of them at the same time again
