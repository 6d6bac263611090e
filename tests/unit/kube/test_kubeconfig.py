"""Which API server, and how it is asked: the real library against a small HTTP server."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flox_node.errors import UsageError
from flox_node.kube import kubeconfig
from flox_node.kube.api import APPLY_PATCH, ApiError
from flox_node.kube.kubeconfig import Client, Files, connect


class Server(ThreadingHTTPServer):
    """Answers with `answers` by path, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.busy = 0
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        server.asked.append({"method": self.command, "path": self.path, "headers": self.headers, "body": body})
        status, data = server.answers.get(self.path.partition("?")[0], (200, b'{"kind": "Thing"}'))
        if server.busy:
            server.busy -= 1
            status, data = 429, b"Too many requests, please try again later."
        self.send_response(status)
        self.send_header("Retry-After", "2")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PATCH = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Generator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)


def config(name: str, server: str, *, current: str | None = None, user: object = None) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": user or {"token": f"token-of-{name}"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    return json.dumps(body | ({} if current is None else {"current-context": current}))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def token(server: Server, client: Client) -> str:
    client.request("GET", "/version")
    return str(server.asked[-1]["headers"]["Authorization"])


def test_the_option_wins_over_the_variable_and_that_over_the_home(tmp_path: Path) -> None:
    environment = {"KUBECONFIG": "/a:/b", "HOME": "/home/me"}
    assert Files.of(Path("/x"), environment) == Files((Path("/x"),), named=True)
    assert Files.of(None, environment) == Files((Path("/a"), Path("/b")), named=False)
    assert Files.of(None, {"KUBECONFIG": "", "HOME": "/home/me"}) == Files(
        (Path("/home/me/.kube/config"),), named=False
    )


def test_each_place_is_taken_and_the_context_can_be_named(server: Server, tmp_path: Path) -> None:
    home = written(tmp_path / ".kube/config", config("home", server.url, current="home"))
    one = written(tmp_path / "one", config("one", server.url))
    two = written(tmp_path / "two", config("two", server.url, current="two"))
    three = written(tmp_path / "three", config("three", server.url, current="three"))
    several = {"HOME": str(tmp_path), "KUBECONFIG": f"{tmp_path / 'none'}:{one}:{two}:{three}"}

    assert token(server, connect(None, None, {"HOME": str(tmp_path)})) == "Bearer token-of-home"
    # As kubectl does: files that are not there are passed over, and the first one with a current context wins.
    assert token(server, connect(None, None, several)) == "Bearer token-of-two"
    assert token(server, connect(None, "one", several)) == "Bearer token-of-one"
    assert token(server, connect(home, None, several)) == "Bearer token-of-home"


def test_in_a_pod_its_own_account_is_taken_unless_there_is_a_kubeconfig(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    monkeypatch.setattr(kubeconfig, "ACCOUNT_TOKEN", written(tmp_path / "token", "t"))
    monkeypatch.setattr("kubernetes.config.load_incluster_config", taken.append)
    pod = {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}

    connect(None, None, pod)
    assert len(taken) == 1
    with pytest.raises(UsageError, match="no kubeconfig"):
        connect(None, "somewhere", pod)
    written(tmp_path / ".kube/config", config("home", server.url, current="home"))
    assert token(server, connect(None, None, pod)) == "Bearer token-of-home"
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (None, "No such file"),
        ("", "no kubeconfig"),
        ("{", "cannot be used"),
        ("[]", "no kubeconfig"),
        ("just words", "no current context"),
        (config("one", "http://127.0.0.1:1"), "no current context"),
        (config("one", "http://127.0.0.1:1", current="other"), "Expected object with name other"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error_with_a_remedy(tmp_path: Path, text: str | None, cause: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=cause) as caught:
        connect(path, None, {})
    assert "--kubeconfig" in caught.value.remedy


def test_a_login_program_is_run_and_its_failure_is_told(server: Server, tmp_path: Path) -> None:
    program = written(
        tmp_path / "login",
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "if 'fail' in sys.argv: sys.exit('the session has expired')\n"
        "status = {'token': 'fresh'}\n"
        "print(json.dumps({'apiVersion': sys.argv[1], 'kind': 'ExecCredential', 'status': status}))\n",
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    version = "client.authentication.k8s.io/v1"

    def user(*arguments: str) -> object:
        return {"exec": {"apiVersion": version, "command": str(program), "args": [version, *arguments]}}

    path = written(tmp_path / "config", config("eks", server.url, current="eks", user=user()))
    assert token(server, connect(path, None, {})) == "Bearer fresh"
    written(path, config("eks", server.url, current="eks", user=user("fail")))
    with pytest.raises(UsageError, match="the session has expired") as caught:
        connect(path, None, {})
    assert "kubectl auth whoami" in caught.value.remedy


def test_without_the_library_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with pytest.raises(UsageError, match=r"kubernetes") as caught:
        connect(tmp_path / "config", None, {})
    assert caught.value.remedy == "pip install 'flox-node[cluster]'"


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Client:
    return connect(written(tmp_path / "config", config("one", server.url, current="one")), None, {})


def test_a_request_is_sent_as_it_is(server: Server, client: Client) -> None:
    body = {"metadata": {"name": "flox"}, "handler": "flox"}
    query = {"fieldManager": "flox-node", "dryRun": "All"}
    said = client.request(
        "PATCH", "/apis/node.k8s.io/v1/runtimeclasses/flox", body, content_type=APPLY_PATCH, query=query
    )
    asked = server.asked[-1]
    assert said == {"kind": "Thing"}
    assert (asked["method"], asked["path"]) == (
        "PATCH",
        "/apis/node.k8s.io/v1/runtimeclasses/flox?fieldManager=flox-node&dryRun=All",
    )
    assert asked["headers"]["Content-Type"] == APPLY_PATCH
    assert asked["headers"]["User-Agent"].startswith("flox-node/")
    assert json.loads(asked["body"]) == body


def test_selectors_are_quoted(server: Server, client: Client) -> None:
    client.request("GET", "/api/v1/pods", query={"fieldSelector": "status.phase!=Failed,spec.nodeName=a"})
    assert server.asked[-1]["path"] == "/api/v1/pods?fieldSelector=status.phase%21%3DFailed%2Cspec.nodeName%3Da"


def test_a_refusal_has_the_server_s_own_words(server: Server, client: Client) -> None:
    details = {"causes": [{"reason": "FieldManagerConflict", "message": 'conflict with "helm"'}]}
    body = {"kind": "Status", "message": "Apply failed", "reason": "Conflict", "details": details}
    server.answers["/api/v1/nodes"] = (409, json.dumps(body).encode())
    with pytest.raises(ApiError, match="Apply failed") as caught:
        client.request("GET", "/api/v1/nodes")
    assert (caught.value.status, caught.value.reason, caught.value.details) == (409, "Conflict", details)
    assert caught.value.exit_code == 9


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("flox_node.kube.transport.time.sleep", pauses.append)
    server.busy = 2
    assert client.request("PATCH", "/api/v1/nodes/n", {"a": 1}) == {"kind": "Thing"}
    assert len(pauses) == 2
    assert all(2 <= pause <= 4 for pause in pauses)
    server.busy = 1
    assert client.text("/log") == '{"kind": "Thing"}'
    server.busy = 100
    with pytest.raises(ApiError, match="please try again later") as caught:
        client.request("GET", "/api/v1/nodes/n")
    assert (caught.value.status, caught.value.exit_code) == (429, 9)


def test_a_group_that_is_not_served_is_not_found(server: Server, client: Client) -> None:
    server.answers["/apis/monitoring.coreos.com/v1/podmonitors"] = (404, b"404 page not found\n")
    with pytest.raises(ApiError, match="404 page not found") as caught:
        client.request("GET", "/apis/monitoring.coreos.com/v1/podmonitors")
    assert caught.value.status == 404


def test_missing_rights_say_what_is_needed(server: Server, client: Client) -> None:
    server.answers["/api/v1/nodes"] = (403, b'{"reason": "Forbidden", "message": "nodes is forbidden"}')
    with pytest.raises(ApiError, match="nodes is forbidden") as caught:
        client.request("GET", "/api/v1/nodes")
    assert "cluster-admin" in caught.value.remedy


@pytest.mark.parametrize("data", [b"<html>a proxy</html>", b"[]"])
def test_whoever_answers_with_no_object_is_no_api_server(server: Server, client: Client, data: bytes) -> None:
    server.answers["/version"] = (200, data)
    with pytest.raises(ApiError, match="/version"):
        client.request("GET", "/version")


def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "config", config("one", "http://127.0.0.1:1", current="one"))
    with pytest.raises(ApiError, match=r"http://127.0.0.1:1 does not answer GET /version") as caught:
        connect(path, None, {}).request("GET", "/version")
    assert (caught.value.status, caught.value.reason) == (0, "Unreachable")


def test_logs_are_texts(server: Server, client: Client) -> None:
    path = "/api/v1/namespaces/flox-node/pods/a/log"
    server.answers[path] = (200, "a line \u2713\n".encode())
    assert client.text(path, query={"container": "node"}) == "a line \u2713\n"
    server.answers[path] = (400, b'{"reason": "BadRequest", "message": "previous terminated container not found"}')
    with pytest.raises(ApiError, match="previous terminated"):
        client.text(path)


def test_a_watch_yields_events_as_they_come(server: Server, client: Client) -> None:
    events = [{"type": "ADDED", "object": {"n": 1}}, {"type": "MODIFIED", "object": {"n": 2}}]
    server.answers["/api/v1/nodes"] = (200, b"".join(json.dumps(event).encode() + b"\n" for event in events))
    assert list(client.watch("/api/v1/nodes", query={"resourceVersion": "7"}, timeout_s=5)) == events
    assert server.asked[-1]["path"] == "/api/v1/nodes?resourceVersion=7&watch=1&timeoutSeconds=5"
