"""Payloads from a URL or a registry: whole and verified, or not at all, whatever the network does."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest

from flox_node.errors import CorruptError, FloxNodeError, OutsideError, UsageError
from flox_node.payload import fetch, obtain, open_payload, registry
from flox_node.payload.fetch import Access, Client
from tests.doubles.server import Registry, Request, serving

BODY = b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 4096
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "pause", lambda *_: None)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def nothing(done: int, total: int | None) -> None:
    pass


def pull(url: str, output: Path, sha256: str = SHA256, access: Access | None = None) -> None:
    obtain.pull(url, output, sha256, access or Access(), nothing)


class Misbehaving:
    """Answers the first requests by what it is given, and every other with the file."""

    def __init__(self, *first: Callable[[Request], None], ranges: bool = True) -> None:
        self.first, self.ranges = list(first), ranges

    def __call__(self, request: Request) -> None:
        if self.first:
            self.first.pop(0)(request)
        else:
            request.send_file(BODY, ranges=self.ranges)


@pytest.mark.parametrize(
    "trouble",
    [
        lambda request: request.send_file(BODY, cut=70_000),
        lambda request: request.send_file(BODY, cut=0),
        lambda request: request.send(503, Retry_After="1"),
        lambda request: request.send(429),
        lambda request: request.send(500),
        lambda request: request.connection.shutdown(socket.SHUT_RDWR),
    ],
)
def test_what_may_pass_is_tried_again_and_gone_on_with(trouble: Callable[[Request], None], tmp_path: Path) -> None:
    output = tmp_path / "p.tar.zst"
    with serving(Misbehaving(trouble, trouble)) as server:
        pull(f"{server.url}/p", output)
        assert output.read_bytes() == BODY
        assert [path.name for path in tmp_path.iterdir()] == ["p.tar.zst"]
        asked = len(server.seen)
        pull(f"{server.url}/p", output)
        assert len(server.seen) == asked, "what is there is not fetched again"


def test_a_broken_connection_is_resumed_where_it_ended(tmp_path: Path) -> None:
    cut = Misbehaving(lambda request: request.send_file(BODY, cut=70_000))
    with serving(cut) as server:
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")
        assert [request.headers.get("Range") for request in server.seen] == [None, "bytes=70000-"]


@pytest.mark.parametrize(
    ("left", "ranges", "requests"),
    [
        (BODY[:5000], True, 1),
        (BODY[:5000], False, 1),
        (BODY, True, 1),
        (b"another file's beginning", True, 2),
        (BODY + b"more", True, 2),
    ],
)
def test_what_an_earlier_run_left_is_gone_on_with_or_thrown_away(
    left: bytes, ranges: bool, requests: int, tmp_path: Path
) -> None:
    (tmp_path / "p.tar.zst.part").write_bytes(left)
    with serving(Misbehaving(ranges=ranges)) as server:
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")
        assert len(server.seen) == requests
    assert (tmp_path / "p.tar.zst").read_bytes() == BODY


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final_and_leaves_nothing(status: int, tmp_path: Path) -> None:
    with serving(lambda request: request.send(status, b"<Error>AccessDenied</Error>")) as server:
        with pytest.raises(OutsideError, match=f"HTTP {status}") as caught:
            pull(f"{server.url}/p?X-Amz-Signature=secret", tmp_path / "p.tar.zst")
        assert len(server.seen) == 1
    assert "secret" not in f"{caught.value.cause}{caught.value.remedy}"
    assert not (tmp_path / "p.tar.zst").exists()


def test_a_server_that_is_gone_is_told_without_what_is_secret(tmp_path: Path) -> None:
    with serving(Misbehaving()) as server:
        url = server.url
    with pytest.raises(OutsideError, match="6 tries: Connection refused") as caught:
        pull(f"{url}/p?X-Amz-Signature=secret", tmp_path / "p.tar.zst")
    assert "secret" not in caught.value.cause


@pytest.mark.parametrize("body", [BODY[:-1] + b"\0", BODY + b"\0", b"", b"<html>Please log in</html>"])
def test_another_file_is_never_used(body: bytes, tmp_path: Path) -> None:
    with (
        serving(lambda request: request.send_file(body)) as server,
        pytest.raises(CorruptError, match="Nothing was unpacked"),
    ):
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_end_is_not_listened_to(tmp_path: Path) -> None:
    with serving(lambda request: request.send_file(BODY * 3)) as server, pytest.raises(CorruptError, match="more than"):
        fetch.download(f"{server.url}/p", tmp_path / "p", SHA256, Client(Access()), nothing, size=len(BODY))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [("bearer_file", "token", "Bearer token"), ("basic_file", "me:pw", "Basic bWU6cHc=")])
def test_a_login_goes_to_its_host_and_never_to_another(files: tuple[str, str, str], tmp_path: Path) -> None:
    kind, text, header = files
    (tmp_path / "secret").write_text(f"{text}\n")
    access = Access.of(**{kind: tmp_path / "secret"})
    assert text not in repr(access)
    with serving(Misbehaving()) as other:
        redirect = Misbehaving(
            lambda request: request.send(302, Location="/here"),
            lambda request: request.send(307, Location=f"{other.url}/p"),
        )
        with serving(redirect) as server:
            pull(f"{server.url}/p", tmp_path / "p.tar.zst", access=access)
            assert [request.headers.get("Authorization") for request in server.seen] == [header, header]
        assert [request.headers.get("Authorization") for request in other.seen] == [None]


def test_a_netrc_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pw\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(Misbehaving()) as server:
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")
        assert server.seen[0].headers.get("Authorization") is None


def test_a_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Misbehaving()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        pull("http://payloads.invalid/p", tmp_path / "p.tar.zst")
        assert proxy.seen[0].path == "http://payloads.invalid/p"


@pytest.mark.parametrize(
    ("url", "sha256", "files", "text"),
    [
        ("https://example.org/p", "", {}, "needs the digest"),
        ("https://example.org/p", "abc", {}, "no SHA-256"),
        ("https://me:pw@example.org/p", SHA256, {}, "holds a login"),
        ("http://example.org/p", SHA256, {"bearer_file": "token"}, "not encrypted"),
        ("oci://example.org/p:latest", "", {}, "by its digest"),
        ("oci://example.org/P@sha256:1", "", {}, "no reference"),
    ],
)
def test_a_wrong_call_says_how_to_call(url: str, sha256: str, files: dict[str, str], text: str, tmp_path: Path) -> None:
    for name in files.values():
        (tmp_path / name).write_text("token")
    access = Access.of(**{kind: tmp_path / name for kind, name in files.items()})
    with pytest.raises(UsageError, match=text) as caught:
        pull(url, tmp_path / "p.tar.zst", sha256, access)
    assert "pw" not in caught.value.cause


def test_secrets_that_are_none_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("a\nb")
    for given in ({"bearer_file": "empty"}, {"bearer_file": "two"}, {"basic_file": "two"}, {"bearer_file": "none"}):
        with pytest.raises(UsageError):
            Access.of(**{kind: tmp_path / name for kind, name in given.items()})
    with pytest.raises(UsageError, match="one way"):
        Access.of(bearer_file=tmp_path / "two", basic_file=tmp_path / "two")
    with pytest.raises(UsageError, match="certificates"):
        Access.of(ca=tmp_path / "none")


def archive_in(folder: Path) -> Path:
    archive = folder / "here.tar.zst"
    archive.write_bytes(BODY)
    return archive


@pytest.mark.parametrize("login", ["", "Basic bWU6cHc="])
@pytest.mark.parametrize("redirected", [False, True])
def test_what_was_pushed_is_pulled_by_its_digest(login: str, redirected: bool, tmp_path: Path) -> None:
    double, access = Registry(login=login), Access(login)
    with serving(double) as server, serving(Misbehaving()) as storage:
        double.elsewhere = storage.url if redirected else ""
        name = f"oci://127.0.0.1:{server.server_port}/team/payload"
        pushed = registry.push(archive_in(tmp_path), registry.Reference.parse(f"{name}:1.0"), access)
        assert str(pushed).startswith(f"{name}@sha256:")
        again = registry.push(archive_in(tmp_path), registry.Reference.parse(name), access)
        assert again == pushed
        pull(str(pushed), tmp_path / "p.tar.zst", "", access)
        assert (tmp_path / "p.tar.zst").read_bytes() == BODY
        assert all(request.headers.get("Authorization") is None for request in storage.seen)
        if login:
            other = tmp_path / "other.tar.zst"
            with pytest.raises(OutsideError, match="HTTP 401"):
                pull(str(pushed), other, "", Access("Basic d3Jvbmc6cHc="))
            assert not other.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"layers": []}',
        b'{"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:1", "size": 1}]}',
        b'{"layers": [{"mediaType": "application/vnd.flox-node.payload.v1.tar+zstd", "digest": "../x", "size": 1}]}',
    ],
)
def test_a_manifest_that_is_no_payloads_is_refused(manifest: bytes, tmp_path: Path) -> None:
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    with serving(Registry(manifests={digest: manifest})) as server, pytest.raises(CorruptError, match="no payload"):
        pull(f"oci://127.0.0.1:{server.server_port}/p@{digest}", tmp_path / "p.tar.zst", "")


def test_a_registry_that_serves_another_manifest_is_not_believed(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    with serving(Registry(manifests={digest: b"{}"})) as server, pytest.raises(CorruptError, match="not sha256:000"):
        pull(f"oci://127.0.0.1:{server.server_port}/p@{digest}", tmp_path / "p.tar.zst", "")


def test_an_install_finds_what_an_interrupted_one_fetched_and_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(Misbehaving()) as server:

        def work(fails: bool) -> None:
            with obtain.obtained(f"{server.url}/p?secret", SHA256, Access(), nothing, cache=cache) as path:
                assert path.name.endswith(".tar.zst")
                assert path.read_bytes() == BODY
                if fails:
                    raise FloxNodeError("the work failed")

        with pytest.raises(FloxNodeError, match="the work failed"):
            work(fails=True)
        work(fails=False)
        assert len(server.seen) == 1
    assert not cache.exists()


def test_a_local_payload_is_taken_where_it_is(tmp_path: Path) -> None:
    archive = archive_in(tmp_path)
    with obtain.obtained(str(archive), SHA256, Access(), nothing) as path:
        assert path == archive
    with (
        pytest.raises(CorruptError, match="Nothing was unpacked"),
        obtain.obtained(str(archive), "0" * 64, Access(), nothing),
    ):
        pass
    pull(str(archive), tmp_path / "copy.tar.zst")
    assert (tmp_path / "copy.tar.zst").read_bytes() == BODY
    with pytest.raises(UsageError, match=r"\.tar\.zst"):
        pull(str(archive), tmp_path / "copy.tar.gz")


def test_the_servers_word_for_waiting_is_kept_within_bounds() -> None:
    waited: list[float] = []
    client = Client(Access(), sleep=waited.append)
    for tries, after in ((0, 0.0), (1, 0.0), (9, 0.0), (0, 7.0), (0, 9e9)):
        _pause(client, tries, after)
    assert 0.25 <= waited[0] <= 0.5
    assert 0.5 <= waited[1] <= 1
    assert 15 <= waited[2] <= 30
    assert waited[3:] == [7.0, 60.0]


_pause = Client.pause


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and the certificate of 127.0.0.1 that it signed itself, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("did NOT run: this machine has no openssl")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=test"
    words += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out ca.pem"
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def encrypted(answer: Callable[[Request], None], certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca.pem", certificate / "key.pem")
    with serving(answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server.url.replace("http://", "https://")


@pytest.mark.parametrize("bundle", [False, True])
def test_a_server_of_an_own_authority_is_trusted_when_that_is_named(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: bool
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    if bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    with encrypted(Misbehaving(), certificate) as url:
        with pytest.raises(OutsideError, match="certificate is not trusted") as caught:
            pull(f"{url}/p", tmp_path / "p.tar.zst")
        assert "--ca" in caught.value.remedy
        pull(f"{url}/p", tmp_path / "p.tar.zst", access=Access.of(ca=certificate / "ca.pem"))
    assert (tmp_path / "p.tar.zst").read_bytes() == BODY


def test_an_encrypted_connection_is_not_left_for_a_plain_one(certificate: Path, tmp_path: Path) -> None:
    with serving(Misbehaving()) as plain:
        redirect = Misbehaving(lambda request: request.send(302, Location=f"{plain.url}/p"))
        with encrypted(redirect, certificate) as url, pytest.raises(OutsideError, match="not encrypted"):
            pull(f"{url}/p", tmp_path / "p.tar.zst", access=Access.of(ca=certificate / "ca.pem"))
        assert plain.seen == []


def test_redirects_come_to_an_end(tmp_path: Path) -> None:
    with (
        serving(lambda request: request.send(302, Location="/p")) as server,
        pytest.raises(OutsideError, match="redirects"),
    ):
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")


def test_a_connection_that_stalls_is_given_up_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_READ_S", 0.3)
    released = threading.Event()

    def stall(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BODY)))
        request.end_headers()
        request.wfile.write(BODY[:5000])
        request.wfile.flush()
        released.wait()
        request.close_connection = True

    with serving(Misbehaving(stall)) as server:
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")
        released.set()
        assert server.seen[1].headers.get("Range") == "bytes=5000-"


def test_a_connection_that_crawls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_SLOW_S", 0.0)
    monkeypatch.setattr(fetch, "_CHUNK", 1000)
    with serving(Misbehaving()) as server, pytest.raises(OutsideError, match="next to nothing"):
        pull(f"{server.url}/p", tmp_path / "p.tar.zst")


def test_a_folder_is_pulled_as_an_archive(folder: Path, tmp_path: Path) -> None:
    pull(str(folder), tmp_path / "p.tar.zst", "")
    assert open_payload(tmp_path / "p.tar.zst").manifest == open_payload(folder).manifest
    with pytest.raises(UsageError, match="no payload"):
        pull(str(tmp_path / "none"), tmp_path / "q.tar.zst", "")
    assert [path.name for path in tmp_path.glob("*q.tar*")] == []
