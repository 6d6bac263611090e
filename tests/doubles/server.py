"""An HTTP server that misbehaves as networks do, and a registry that insists on its protocol."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def _any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(self)
        self.server.answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Tests look at `seen` instead."""

    def send(self, status: int, body: bytes = b"", *, cut: int | None = None, **headers: str) -> None:
        """Answer; with `cut`, the connection ends after so many bytes of the body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def send_file(self, body: bytes, *, cut: int | None = None, ranges: bool = True) -> None:
        """Answer with a file, or what the request wants of it."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and ranges else 0
        if not start:
            self.send(200, body, cut=cut)
        elif start >= len(body):
            self.send(416, Content_Range=f"bytes */{len(body)}")
        else:
            self.send(206, body[start:], cut=cut, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")


class Server(ThreadingHTTPServer):
    """Answers every request by `answer`; `seen` are those that came."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answer = answer
        self.seen: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about."""


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Registry:
    """A registry of the OCI distribution protocol, as an `answer`.

    As the real one it takes a blob only under the digest that it has and in an upload that it began, and a manifest
    only when its blobs are there; with `login` it sends clients to its token service, and tokens are for one scope.
    """

    login: str = ""  # the Authorization that the token service wants
    elsewhere: str = ""  # blobs are redirected to this server
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: set[str] = field(default_factory=set)

    def __call__(self, request: Request) -> None:
        url = urlsplit(request.path)
        if url.path == "/token":
            self._token(request, parse_qs(url.query))
            return
        found = re.fullmatch(
            r"/v2/(?P<name>[a-z0-9/._-]+?)/(?P<what>manifests|blobs|blobs/uploads)/(?P<id>[^/]*)", url.path
        )
        if found is None:
            request.send(404)
            return
        name, what, identity = found["name"], found["what"], found["id"]
        actions = "pull" if request.command in ("GET", "HEAD") else "pull,push"
        scope = f"repository:{name}:{actions}"
        if self.login and request.headers.get("Authorization") != f"Bearer for-{scope}":
            host = request.headers["Host"]
            challenge = f'Bearer realm="http://{host}/token",service="test",scope="{scope}"'
            request.send(401, WWW_Authenticate=challenge)
        elif what == "blobs/uploads":
            self._upload(request, name, identity, parse_qs(url.query))
        elif request.command == "PUT":
            self._put_manifest(request, identity)
        else:
            held = self.manifests if what == "manifests" else self.blobs
            data = held.get(identity)
            if data is None:
                request.send(404)
            elif self.elsewhere and what == "blobs":
                request.send(307, Location=f"{self.elsewhere}/{identity}?signature=secret")
            else:
                request.send_file(data)

    def _token(self, request: Request, query: dict[str, list[str]]) -> None:
        if request.headers.get("Authorization") != self.login:
            request.send(401)
            return
        request.send(200, json.dumps({"token": f"for-{query['scope'][0]}"}).encode())

    def _upload(self, request: Request, name: str, identity: str, query: dict[str, list[str]]) -> None:
        if request.command == "POST":
            self.uploads.add(session := f"u{len(self.uploads)}")
            request.send(202, Location=f"/v2/{name}/blobs/uploads/{session}?state=1")
            return
        digest = f"sha256:{hashlib.sha256(request.body).hexdigest()}"
        if identity not in self.uploads or query.get("digest") != [digest] or query.get("state") != ["1"]:
            request.send(400)
            return
        self.uploads.discard(identity)
        self.blobs[digest] = request.body
        request.send(201)

    def _put_manifest(self, request: Request, identity: str) -> None:
        body = json.loads(request.body)
        wanted = [body["config"], *body["layers"]]
        if any(len(self.blobs.get(blob["digest"], b"")) != blob["size"] for blob in wanted):
            request.send(400)
            return
        digest = f"sha256:{hashlib.sha256(request.body).hexdigest()}"
        if identity.startswith("sha256:") and identity != digest:
            request.send(400)
            return
        self.manifests[digest] = self.manifests[identity] = request.body
        request.send(201)
