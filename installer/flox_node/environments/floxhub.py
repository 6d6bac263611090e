"""Ask FloxHub, with the pod's own token, where an environment's branch is: one request, no git.

The answer authorises: the hub shows a ref only to whoever may read it. And it says whether a cached build is the live
one: every push, install and switch of the generation makes a new commit.
"""

from __future__ import annotations

import binascii
import contextlib
import http.client
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import urlsplit

from flox_node import __version__
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import AccessDeniedError, DeadlineError, EnvironmentNotFoundError, NetworkError
from flox_node.environments.reference import Reference
from flox_node.state.policy import Network
from flox_node.tls import trusting

# An owner with 100,000 environments; protocol version 0 lists all branches, sorted.
_LARGEST_ANSWER = 16 << 20
# After so many bytes of it, only the one branch is asked for: protocol version 2 can, but wants a request of its own.
_LONG_ANSWER = 64 << 10
_ADVERTISEMENT = "application/x-git-upload-pack-advertisement"
_RESULT = "application/x-git-upload-pack-result"
_SLOWEST_STEP_S = 15.0


class _Stream(Protocol):
    def read(self, amount: int, /) -> bytes: ...


class _Socket(Protocol):
    def settimeout(self, value: float, /) -> None: ...


class _Source(Protocol):
    def read1(self, amount: int, /) -> bytes: ...


def tip(
    reference: Reference,
    *,
    git_url: str,
    token: str | None,
    deadline: Deadline,
    ca_file: str | None = None,
    network: Network = Network(),  # noqa: B008  # frozen
) -> str:
    """The commit (40 hex digits) at the tip of the environment's branch, as this token sees it.

    Raises:
        AccessDeniedError: the hub refuses the token, or wants one.
        EnvironmentNotFoundError: no such owner or environment, or not for this token.
        NetworkError: no answer, or one that is not a hub's.
    """
    hub = _Hub(git_url, token, deadline, ca_file, network)
    try:
        with hub.ask(reference, "GET", "info/refs?service=git-upload-pack", _ADVERTISEMENT) as stream:
            try:
                return _find(_after_service(stream), reference, longest=_LONG_ANSWER)
            except _LongListError:
                pass
            # Not with all of the time: who does not know version 2 may not even answer.
            short = _Hub(git_url, token, Deadline.after(deadline.left() / 10), ca_file, network)
            with (
                contextlib.suppress(NetworkError, DeadlineError),
                short.ask(reference, "POST", "git-upload-pack", _RESULT, _ls_refs(reference)) as answer,
            ):
                return _find(_packets(answer), reference)
            return _find(_packets(stream), reference)  # a hub that does not know version 2
    except DeadlineError as error:
        raise NetworkError(f"FloxHub ({urlsplit(git_url).netloc}) did not answer in time.") from error


class _LongListError(Exception):
    """The branch was not among the first ones."""


class _Hub:
    """Requests to the hub, each on a connection of its own."""

    def __init__(
        self, git_url: str, token: str | None, deadline: Deadline, ca_file: str | None, network: Network
    ) -> None:
        self._url = urlsplit(git_url)
        self._token = token
        self._deadline = deadline
        self._ca_file = ca_file
        self._network = network

    @contextlib.contextmanager
    def ask(
        self, reference: Reference, method: str, path: str, kind: str, body: bytes | None = None
    ) -> Iterator[_Limited]:
        host = self._url.netloc
        headers = {"User-Agent": f"git/2 flox-node/{__version__}", "Accept": "*/*"}
        if self._token is not None:
            basic = binascii.b2a_base64(f"oauth:{self._token}".encode(), newline=False).decode()
            headers["Authorization"] = f"Basic {basic}"
        if body is not None:
            headers |= {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
        target = f"{self._url.path}/{reference.owner}/floxmeta/{path}"
        connection, through = self._connection()
        try:
            connection.connect()
            socket = connection.sock  # getresponse() forgets it when the hub closes the connection after its answer
            connection.request(method, f"{through}{target}", body=body, headers=headers)
            response = connection.getresponse()
            _check_status(response, reference, has_token=self._token is not None, host=host, kind=kind)
            yield _Limited(response, socket, self._deadline)
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"FloxHub ({host}) did not answer: {_reason(error)}.") from error
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        """A connection that is not open yet, and what stands before the path on it."""
        timeout = min(self._deadline.left(), _SLOWEST_STEP_S)
        secure, host, port = self._url.scheme == "https", self._url.hostname or "", self._url.port
        context = trusting(self._ca_file) if secure else None
        proxy = urlsplit(self._network.proxy_for(self._url.scheme, host) or "")
        if not proxy.hostname:
            if context:
                return http.client.HTTPSConnection(host, port, timeout=timeout, context=context), ""
            return http.client.HTTPConnection(host, port, timeout=timeout), ""
        if not context:
            return http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=timeout), f"http://{self._url.netloc}"
        tunnel = http.client.HTTPSConnection(proxy.hostname, proxy.port or 80, timeout=timeout, context=context)
        tunnel.set_tunnel(host, port or 443)
        return tunnel, ""


def _check_status(
    response: http.client.HTTPResponse, reference: Reference, *, has_token: bool, host: str, kind: str
) -> None:
    if response.status == 200:
        answered = (response.getheader("Content-Type") or "").partition(";")[0].strip()
        if answered != kind:
            raise NetworkError(f"{host} answered, but not as a git server does ({ascii(answered)[:60]}): a proxy?")
        return
    if response.status in (401, 403) and not has_token:
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
        self._piece, self._at = b"", 0

    def read(self, amount: int, /) -> bytes:
        self._left -= amount
        if self._left < 0:
            raise NetworkError(f"FloxHub's list of branches is longer than {_LARGEST_ANSWER >> 20} MiB.")
        data = self._piece[self._at : self._at + amount]
        self._at += len(data)
        while len(data) < amount:
            # Whoever sends one byte at a time must not hold a pod beyond its deadline.
            self._socket.settimeout(min(self._deadline.left(), _SLOWEST_STEP_S))
            self._piece = self._response.read1(1 << 16)
            if not self._piece:
                raise NetworkError("FloxHub's answer ends in the middle.")
            self._at = amount - len(data)
            data += self._piece[: self._at]
        return data


def _find(lines: Iterator[bytes], reference: Reference, longest: int | None = None) -> str:
    wanted = f"refs/heads/{reference.name}".encode()
    read = 0
    for line in lines:
        commit, _, rest = line.rstrip(b"\n").partition(b" ")
        if rest.partition(b"\0")[0] == wanted:
            text = commit.decode("ascii", "replace")
            if len(text) == 40 and all(digit in "0123456789abcdef" for digit in text):
                return text
            raise NetworkError("FloxHub's list of branches is malformed.")
        read += len(line) + 4
        if longest is not None and read > longest:
            raise _LongListError
    raise _not_found(reference)


def _ls_refs(reference: Reference) -> bytes:
    """The request for one ref (gitprotocol-v2). A prefix may match others, too."""
    words = (b"command=ls-refs\n", b"object-format=sha1\n", None, f"ref-prefix refs/heads/{reference.name}\n".encode())
    return b"".join(b"0001" if word is None else b"%04x%s" % (len(word) + 4, word) for word in words) + b"0000"


def _after_service(stream: _Stream) -> Iterator[bytes]:
    """The ref lines of a smart-HTTP advertisement: `# service=...`, a flush, the refs, a flush (gitprotocol-http)."""
    service = _packet(stream)
    if service is None or not service.startswith(b"# service=git-upload-pack") or _packet(stream) is not None:
        raise NetworkError("FloxHub's answer is not a git server's.")
    yield from _packets(stream)


def _packets(stream: _Stream) -> Iterator[bytes]:
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
