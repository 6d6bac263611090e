"""Ask FloxHub, with the pod's own token, where an environment's branch is: one request, no git.

The answer authorises: the hub shows a ref only to whoever may read it. And it says whether a cached build is the live
one: every push, install and switch of the generation makes a new commit.
"""

from __future__ import annotations

import binascii
import http.client
import ssl
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import urlsplit

from flox_node import __version__
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import AccessDeniedError, EnvironmentNotFoundError, NetworkError
from flox_node.environments.reference import Reference

# An owner with 100,000 environments; protocol version 0 lists all branches, sorted.
_LARGEST_ANSWER = 16 << 20
_CONTENT_TYPE = "application/x-git-upload-pack-advertisement"
_SLOWEST_STEP_S = 15.0


class _Stream(Protocol):
    def read(self, amount: int, /) -> bytes: ...


class _Socket(Protocol):
    def settimeout(self, value: float, /) -> None: ...


class _Source(Protocol):
    def read1(self, amount: int, /) -> bytes: ...


def tip(
    reference: Reference, *, git_url: str, token: str | None, deadline: Deadline, ca_file: str | None = None
) -> str:
    """The commit (40 hex digits) at the tip of the environment's branch, as this token sees it.

    Raises:
        AccessDeniedError: the hub refuses the token, or wants one.
        EnvironmentNotFoundError: no such owner or environment, or not for this token.
        NetworkError: no answer, or one that is not a hub's.
    """
    url = urlsplit(git_url)
    connection = _connect(url.scheme, url.hostname or "", url.port, deadline, ca_file)
    headers = {"User-Agent": f"git/2 flox-node/{__version__}", "Accept": "*/*"}
    if token is not None:
        headers["Authorization"] = "Basic " + binascii.b2a_base64(f"oauth:{token}".encode(), newline=False).decode()
    try:
        connection.connect()
        socket = connection.sock  # getresponse() forgets it when the hub closes the connection after its answer
        connection.request(
            "GET", f"{url.path}/{reference.owner}/floxmeta/info/refs?service=git-upload-pack", headers=headers
        )
        response = connection.getresponse()
        _check_status(response, reference, has_token=token is not None, host=url.netloc)
        return _find(_Limited(response, socket, deadline), reference)
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(f"FloxHub ({url.netloc}) did not answer: {_reason(error)}.") from error
    finally:
        connection.close()


def _connect(
    scheme: str, host: str, port: int | None, deadline: Deadline, ca_file: str | None
) -> http.client.HTTPConnection:
    timeout = min(deadline.left(), _SLOWEST_STEP_S)
    if scheme == "https":
        context = ssl.create_default_context(cafile=ca_file)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _check_status(response: http.client.HTTPResponse, reference: Reference, *, has_token: bool, host: str) -> None:
    if response.status == 200:
        kind = (response.getheader("Content-Type") or "").partition(";")[0].strip()
        if kind != _CONTENT_TYPE:
            raise NetworkError(f"{host} answered, but not as a git server does ({ascii(kind)[:60]}): a proxy?")
        return
    if response.status == 401 and not has_token:
        raise AccessDeniedError(f"FloxHub shows {reference.environment} only with a token, and the pod has none.")
    if response.status in (401, 403):
        raise AccessDeniedError(
            f"FloxHub refuses the pod's token for {reference.environment} (HTTP {response.status})."
        )
    if response.status in (404, 410):
        raise _not_found(reference)
    raise NetworkError(f"FloxHub ({host}) answered with HTTP {response.status}.")


class _Limited:
    """The body of an answer: exact reads, within the deadline and a size."""

    def __init__(self, response: _Source, socket: _Socket, deadline: Deadline) -> None:
        self._response = response
        self._socket = socket
        self._deadline = deadline
        self._left = _LARGEST_ANSWER

    def read(self, amount: int, /) -> bytes:
        self._left -= amount
        if self._left < 0:
            raise NetworkError(f"FloxHub's list of branches is longer than {_LARGEST_ANSWER >> 20} MiB.")
        data = b""
        while len(data) < amount:
            # Whoever sends one byte at a time must not hold a pod beyond its deadline.
            self._socket.settimeout(min(self._deadline.left(), _SLOWEST_STEP_S))
            piece = self._response.read1(amount - len(data))
            if not piece:
                raise NetworkError("FloxHub's answer ends in the middle.")
            data += piece
        return data


def _find(stream: _Stream, reference: Reference) -> str:
    wanted = f"refs/heads/{reference.name}".encode()
    for line in _ref_lines(stream):
        commit, _, rest = line.rstrip(b"\n").partition(b" ")
        if rest.partition(b"\0")[0] == wanted:
            text = commit.decode("ascii", "replace")
            if len(text) == 40 and all(digit in "0123456789abcdef" for digit in text):
                return text
            raise NetworkError("FloxHub's list of branches is malformed.")
    raise _not_found(reference)


def _ref_lines(stream: _Stream) -> Iterator[bytes]:
    """The ref lines of a smart-HTTP advertisement: `# service=...`, a flush, the refs, a flush (gitprotocol-http)."""
    service = _packet(stream)
    if service is None or not service.startswith(b"# service=git-upload-pack") or _packet(stream) is not None:
        raise NetworkError("FloxHub's answer is not a git server's.")
    while (line := _packet(stream)) is not None:
        if line.startswith(b"ERR "):
            raise NetworkError(f"FloxHub says: {line[4:200].decode('utf-8', 'replace').strip()!a}.")
        yield line


def _packet(stream: _Stream) -> bytes | None:
    """The next pkt-line's content; None for a flush."""
    head = stream.read(4)
    try:
        length = int(head, 16) if head.isalnum() else -1
    except ValueError:
        length = -1
    if length == 0:
        return None
    if length < 4:
        raise NetworkError("FloxHub's list of branches is malformed.")
    return stream.read(length - 4)


def _not_found(reference: Reference) -> EnvironmentNotFoundError:
    return EnvironmentNotFoundError(
        f"FloxHub has no environment {reference.environment}, or the pod's token may not see it."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
