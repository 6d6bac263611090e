"""Fetching payloads: from a URL or a registry into one verified file, resumed where a connection breaks.

What arrives goes into `NAME.part` beside the destination and becomes the destination only when its SHA-256 is the
wanted one: whoever finds the destination finds a whole payload. A `.part` of an interrupted run is gone on with.

Credentials come from files, and go to the host that they were given for and to no other, whatever it redirects to.
Pre-signed URLs are credentials themselves: no error or progress line shows what stands behind their `?`.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from flox_node.errors import CorruptError, OutsideError, UsageError

if TYPE_CHECKING:
    import requests

Progress = Callable[[int, int | None], None]
"""Told how many bytes are here, and how many it will be where that is known."""

_T = TypeVar("_T")
_CHUNK = 1 << 20  # bytes
_CONNECT_S, _READ_S = 10.0, 30.0
_SLOW_S, _SLOW_BYTES = 60.0, 64 << 10  # fewer bytes in that time are a stalled connection
_TRIES = 6  # with next to no progress between them
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_REDIRECTS = 5
_HEALING = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Access:
    """How a server is reached. `authorization`: the value of that header; `ca`: PEM certificates to trust instead.

    Proxies are taken from the environment (HTTPS_PROXY, NO_PROXY), as everywhere.
    """

    authorization: str = field(default="", repr=False)
    ca: Path | None = None

    @classmethod
    def of(cls, *, bearer_file: Path | None = None, basic_file: Path | None = None, ca: Path | None = None) -> Access:
        """With a token, or with `user:password`, from a file.

        Raises:
            UsageError: both are given, or a file is missing, empty, or not what it should be.
        """
        if bearer_file and basic_file:
            raise UsageError("There is one way to log in: give a bearer token or a basic login.")
        if ca is not None and not ca.is_file():
            raise UsageError(f"There are no certificates at {ca}.")
        if bearer_file:
            return cls(f"Bearer {secret(bearer_file)}", ca)
        if basic_file:
            login = secret(basic_file)
            if ":" not in login:
                raise UsageError(f"{basic_file} does not hold user:password.")
            return cls("Basic " + base64.b64encode(login.encode()).decode(), ca)
        return cls(ca=ca)


def secret(file: Path) -> str:
    """The one line of a file that holds a secret.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}.") from error
    if not text or not text.isprintable():
        raise UsageError(f"{file} does not hold one line of text.")
    return text


def is_url(source: str) -> bool:
    """Whether this names something on a network."""
    return source.startswith(("https://", "http://", "oci://"))


def checked_sha256(text: str) -> str:
    """A SHA-256 in lower case, without the prefix `sha256:`.

    Raises:
        UsageError: it is none.
    """
    digest = text.strip().lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(digest):
        raise UsageError(f"{text!r} is no SHA-256: 64 hexadecimal digits.")
    return digest


def shown(url: str) -> str:
    """A URL without what may be secret in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def patiently(client: Client, what: str, work: Callable[[], _T]) -> _T:
    """Do something small with a server, in several tries.

    Raises:
        OutsideError: none of them did.
    """
    for tries in range(_TRIES):
        try:
            return work()
        except Healing as error:
            failed = error
            client.pause(tries, error.after_s)
    raise OutsideError(f"{what}: no answer in {_TRIES} tries: {failed}.", remedy="Run the command again.") from failed


def download(
    url: str, destination: Path, sha256: str, client: Client, progress: Progress, *, size: int | None = None
) -> None:
    """Bring what `url` serves to `destination`, verified; what is there already is kept if it is that.

    size: in bytes, where it is known beforehand; a server that sends more is not listened to.

    Raises:
        OutsideError: the server refuses, or does not answer in several tries.
        CorruptError: it serves something else.
    """
    if destination.is_file() and _digest(destination) == sha256:
        return
    part = destination.with_name(destination.name + ".part")
    for fresh in (not part.exists(), True):
        if fresh:
            part.unlink(missing_ok=True)
        try:
            _fill(url, part, client, progress, size)
        except (OSError, CorruptError):
            part.unlink(missing_ok=True)  # a full disk is not left full
            raise
        if _digest(part) == sha256:
            os.replace(part, destination)
            _sync(destination.parent)
            return
        # What an earlier run left may have been another file's beginning: once more, from its first byte.
        found = _digest(part)
        part.unlink()
        if fresh:
            break
    raise CorruptError(
        f"{shown(url)} has the SHA-256 {found}, not {sha256}. Nothing was unpacked.",
        remedy="Compare the digest with the one that the release names; a proxy may have answered instead.",
    )


def _fill(url: str, part: Path, client: Client, progress: Progress, size: int | None) -> None:
    """Append to `part` until the server has no more."""
    tries = 0
    with open(part, "ab") as file:
        while True:
            before = file.tell()
            try:
                with client.request("GET", url, {"Range": f"bytes={before}-"} if before else {}) as answer:
                    total = _position(answer, file, before)
                    if total == before and answer.status_code == 416:
                        break
                    for data in _chunks(answer):
                        file.write(data)
                        if size is not None and file.tell() > size:
                            raise CorruptError(f"{shown(url)} sends more than the {size} bytes that it should have.")
                        progress(file.tell(), total or size)
                    if total is not None and file.tell() < total:
                        raise Healing(f"the connection ended after {file.tell()} of {total} bytes")
                    break
            except Healing as error:
                tries = 0 if file.tell() >= before + _SLOW_BYTES else tries + 1
                if tries >= _TRIES:
                    raise OutsideError(
                        f"{shown(url)} could not be fetched in {_TRIES} tries: {error}.",
                        remedy="Run the command again: it goes on where it stopped.",
                    ) from error
                client.pause(tries, error.after_s)
        file.flush()
        os.fsync(file.fileno())


def _position(answer: requests.Response, file: Any, before: int) -> int | None:
    """Put `file` where the answer goes on; how long the whole is, where it is said."""
    if answer.status_code == 206:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if told is not None and int(told[1]) == before:
            return None if told[2] == "*" else int(told[2])
        _empty(file)
        raise Healing("the server resumed at another place")
    if answer.status_code == 416:
        told = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
        if told is not None and int(told[1]) == before:
            return before
        _empty(file)
        raise Healing("the server has no such range")
    _empty(file)
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and not answer.headers.get("Content-Encoding") else None


def _empty(file: Any) -> None:
    file.seek(0)
    file.truncate()


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """The body as it is sent.

    Raises:
        Healing: the connection broke, or crawls.
    """
    import requests
    import urllib3

    since, received = time.monotonic(), 0
    try:
        # Raw: a Content-Encoding would make other bytes of it than those that the digest is of.
        # And what has come: a read that waits for more would lose it when the connection breaks.
        while data := answer.raw.read1(_CHUNK, decode_content=False):
            yield data
            received += len(data)
            if time.monotonic() - since > _SLOW_S:
                if received < _SLOW_BYTES:
                    raise Healing("it sends next to nothing")
                since, received = time.monotonic(), 0
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Healing(_why(error)) from error


class Healing(Exception):  # noqa: N818  # no error yet: another try may do
    """What another try may cure. `after_s`: how long the server asks to wait."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class DeniedError(OutsideError):
    """The server refuses. `status`: HTTP's; `challenge`: how it wants to be logged in to."""

    def __init__(self, url: str, status: int, challenge: str) -> None:
        super().__init__(f"{shown(url)}: HTTP {status}.", remedy=_REMEDIES.get(status, ""))
        self.status, self.challenge = status, challenge


class Client:
    """Talks HTTP to one server, and to those that it redirects to without its credentials."""

    def __init__(self, access: Access, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """sleep: for tests."""
        try:
            import requests
        except ImportError as error:
            raise UsageError(
                "Fetching payloads needs the package requests.",
                remedy="pip install 'flox-node[fetch]'; or, on a node, fetch it with curl and name the file.",
            ) from error
        from flox_node import __version__

        self._access, self._sleep = access, sleep
        self._session = requests.Session()
        self._session.headers = {"User-Agent": f"flox-node/{__version__}", "Accept-Encoding": "identity"}
        self._origin = ""

    def pause(self, tries: int, after_s: float = 0.0) -> None:
        """Wait before another try: longer each time, and nobody at the same moment as everybody."""
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**tries)
        self._sleep(max(min(after_s, 2 * _LONGEST_PAUSE_S), random.uniform(longest / 2, longest)))

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **body: Any
    ) -> requests.Response:
        """Ask, following redirects of reads; what succeeded comes back, to be closed, its body unread.

        416 comes back too: there is nothing after a range's start.

        Raises:
            Healing: another try may do.
            DeniedError: it will not: the server refuses.
            OutsideError: nor here: its certificate is not trusted, or it leads astray.
            UsageError: the URL is none that can be asked.
        """
        answer = self._asked(method, url, headers or {}, body)
        if answer.status_code < 300 or answer.status_code == 416:
            return answer
        answer.close()
        if answer.status_code in _HEALING:
            after = answer.headers.get("Retry-After", "")
            raise Healing(f"HTTP {answer.status_code}", float(after) if after.isdigit() else 0.0)
        raise DeniedError(url, answer.status_code, answer.headers.get("WWW-Authenticate", ""))

    def _asked(self, method: str, url: str, headers: Mapping[str, str], body: dict[str, Any]) -> requests.Response:
        import requests

        self._origin = self._origin or _origin(url)
        for _ in range(_REDIRECTS):
            _require_askable(url, self._authorization(url))
            try:
                answer = self._session.request(
                    method,
                    url,
                    headers=dict(headers),
                    auth=self._authorise,  # also keeps a .netrc from being asked
                    stream=True,
                    allow_redirects=False,
                    timeout=(_CONNECT_S, _READ_S),
                    # Here, not at the session: REQUESTS_CA_BUNDLE goes before what that says.
                    verify=str(self._access.ca) if self._access.ca else None,
                    **body,
                )
            except requests.exceptions.SSLError as error:
                raise OutsideError(
                    f"{shown(url)}: its certificate is not trusted ({_why(error)}).",
                    remedy="Name the certificates of your own authority with --ca.",
                ) from error
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
                raise UsageError(f"{shown(url)} is no URL that can be fetched.") from error
            except requests.RequestException as error:
                raise Healing(_why(error)) from error
            if method not in ("GET", "HEAD") or answer.status_code not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            there = urljoin(url, answer.headers.get("Location", ""))
            if url.startswith("https://") and not there.startswith("https://"):
                raise OutsideError(f"{shown(url)} redirects to {shown(there)}, which is not encrypted.")
            url = there
        raise OutsideError(f"{shown(url)}: more than {_REDIRECTS} redirects.")

    def _authorization(self, url: str) -> str:
        return self._access.authorization if self._is_origin(url) else ""

    def _is_origin(self, url: str) -> bool:
        return _origin(url) == self._origin

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        given = self._authorization(request.url or "")
        if given and "Authorization" not in request.headers:
            request.headers["Authorization"] = given
        return request


_REMEDIES = {
    401: "Give a login with --bearer-file or --basic-file.",
    403: "A pre-signed URL may have expired; else the login may not read this.",
    404: "Compare the name with what the release or the registry lists.",
}


def _require_askable(url: str, authorization: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise UsageError(f"{shown(url)} is no URL that can be fetched (https://...).")
    if parts.username is not None:
        raise UsageError(
            "The URL holds a login, which everybody on this machine can read.",
            remedy="Put it into a file as user:password and name that with --basic-file.",
        )
    if authorization and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(f"{shown(url)} is not encrypted: the login is not sent there.", remedy="Use https://.")


def is_loopback(host: str) -> bool:
    """Whether nobody is between us and this host."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or {'http': 80, 'https': 443}.get(parts.scheme)}"


def _why(error: BaseException) -> str:
    """What happened, without the URL that these libraries put into their texts."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None) or next(
            (arg for arg in seen.args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = getattr(seen, "strerror", None) or str(seen.args[-1] if seen.args else "")
    return re.sub(r"^.*: |\[Errno \d+\] |\?\S*", "", text) or type(seen).__name__


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
