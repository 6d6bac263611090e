"""The API server as a pod reaches it: real HTTPS, with a server that answers as told."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flox_node.errors import UsageError
from flox_node.kube.api import JSON_PATCH, ApiError
from flox_node.kube.incluster import InCluster

Answer = tuple[int, bytes, dict[str, str]]


class Server(ThreadingHTTPServer):
    """Gives its `answers` one after the other, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str, Any, bytes]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        server.asked.append((self.command, self.path, self.headers, body))
        status, data, headers = server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PATCH = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service account's folder; its ca.crt is the server's own certificate."""
    return _account(tmp_path_factory.mktemp("account"))


@pytest.fixture
def server(account: Path) -> Generator[Server]:
    with Server() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(account / "ca.crt", account / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def api(server: Server, account: Path) -> InCluster:
    return InCluster(account, _environment(server.server_address[1]))


def test_a_request_carries_the_token_the_kind_of_its_body_and_its_query(api: InCluster, server: Server) -> None:
    server.answers = [(200, b'{"kind": "Node"}', {})]
    query = {"fieldManager": "flox-node"}
    answer = api.request("PATCH", "/api/v1/nodes/n", [{"op": "test"}], content_type=JSON_PATCH, query=query)
    assert answer == {"kind": "Node"}
    [(method, path, headers, body)] = server.asked
    assert (method, path) == ("PATCH", "/api/v1/nodes/n?fieldManager=flox-node")
    assert headers["Authorization"] == "Bearer the-token"
    assert headers["Content-Type"] == JSON_PATCH
    assert json.loads(body) == [{"op": "test"}]


def test_a_token_that_was_rotated_is_used_at_once(api: InCluster, server: Server, account: Path) -> None:
    server.answers = [(200, b"{}", {})] * 2
    api.request("GET", "/a")
    (account / "token").write_text("another")
    api.request("GET", "/a")
    (account / "token").write_text("the-token")
    assert server.asked[1][2]["Authorization"] == "Bearer another"


def test_a_refusal_says_what_the_server_said(api: InCluster, server: Server) -> None:
    status = {"kind": "Status", "message": "nodes is forbidden", "reason": "Forbidden"}
    server.answers = [(403, json.dumps(status).encode(), {})]
    with pytest.raises(ApiError, match="nodes is forbidden") as caught:
        api.request("GET", "/api/v1/nodes")
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    assert "the-token" not in caught.value.cause + caught.value.remedy


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(
    api: InCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("flox_node.kube.transport.time.sleep", pauses.append)
    busy = (429, b"Too many requests, please try again later.\n", {"Retry-After": "3"})
    server.answers = [busy, busy, (200, b'{"kind": "Node"}', {})]
    assert api.request("GET", "/api/v1/nodes/n") == {"kind": "Node"}
    assert len(pauses) == 2
    assert all(3 <= pause <= 6 for pause in pauses)


def test_a_server_that_stays_busy_is_an_error_with_its_text(
    api: InCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flox_node.kube.transport.time.sleep", lambda _: None)
    server.answers = [(429, b"Too many requests, please try again later.\n", {"Retry-After": "soon"})] * 10
    with pytest.raises(ApiError, match="please try again later") as caught:
        api.request("GET", "/api/v1/nodes/n")
    assert caught.value.status == 429
    assert len(server.asked) < 10


def test_a_refusal_has_its_details(api: InCluster, server: Server) -> None:
    details = {"causes": [{"reason": "FieldManagerConflict", "message": 'conflict with "helm"'}]}
    body = {"kind": "Status", "message": "Apply failed", "reason": "Conflict", "details": details}
    server.answers = [(409, json.dumps(body).encode(), {})]
    with pytest.raises(ApiError, match="Apply failed") as caught:
        api.request("GET", "/api/v1/nodes/n")
    assert (caught.value.status, caught.value.reason, caught.value.details) == (409, "Conflict", details)


@pytest.mark.parametrize("body", [b"[]", b"<html>", b'"x"'])
def test_an_answer_that_is_no_object_is_an_error(api: InCluster, server: Server, body: bytes) -> None:
    server.answers = [(200, body, {})]
    with pytest.raises(ApiError) as caught:
        api.request("GET", "/a")
    assert caught.value.status == 0


def test_a_watch_yields_its_events_and_a_refused_one_is_an_error(api: InCluster, server: Server) -> None:
    events = [{"type": "ADDED", "object": {"a": 1}}, {"type": "MODIFIED", "object": {"a": 2}}]
    server.answers = [(200, b"".join(json.dumps(event).encode() + b"\n" for event in events), {})]
    query = {"fieldSelector": "metadata.name=n"}
    assert list(api.watch("/leases", query=query, timeout_s=5)) == events
    assert "watch=1" in server.asked[0][1]
    server.answers = [(410, b'{"reason": "Expired", "message": "too old"}', {})]
    with pytest.raises(ApiError, match="too old"):
        list(api.watch("/leases", query=query, timeout_s=5))


def test_a_server_with_another_certificate_gets_no_token(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="does not answer"):
        InCluster(_account(tmp_path), _environment(server.server_address[1])).request("GET", "/a")
    assert server.asked == []


def test_nobody_listening_is_an_error_and_no_pod_is_a_usage_error(account: Path) -> None:
    with pytest.raises(ApiError, match="does not answer"):
        InCluster(account, _environment(1)).request("GET", "/a")
    with pytest.raises(UsageError, match="no pod"):
        InCluster(account, {})


def _account(folder: Path) -> Path:
    """Fill a service account's folder; its ca.crt is a fresh certificate of 127.0.0.1, whose key is beside it."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.crt"), "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    (folder / "token").write_text("the-token\n")
    return folder


def _environment(port: int) -> dict[str, str]:
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
