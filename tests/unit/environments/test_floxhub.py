from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from flox_node.environments import floxhub
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import AccessDeniedError, EnvironmentNotFoundError, NetworkError
from flox_node.environments.reference import Reference
from flox_node.state.policy import Network
from tests.doubles.hub import Hub, HubData, lockfile

HELLO = Reference("demo", "hello")
LONG_S = 3600  # more than any test may take


def tip(url: str, reference: Reference = HELLO, token: str | None = None, seconds: float = LONG_S) -> str:
    return floxhub.tip(reference, git_url=url, token=token, deadline=Deadline.after(seconds))


def test_the_tip_is_the_commit_that_git_sees(hub: Hub, data: HubData) -> None:
    assert tip(hub.git_url) == data.commit("demo", "hello")
    newer = data.publish("demo", "hello", lockfile())
    assert tip(hub.git_url) == newer


def test_the_right_branch_is_found_among_similar_ones(hub: Hub, data: HubData) -> None:
    commits = {name: data.publish("demo", name, lockfile()) for name in ("hell", "hello2", "a", "z", "HELLO")}
    for name, commit in commits.items():
        assert tip(hub.git_url, Reference("demo", name)) == commit


def test_one_request_is_made_and_no_credentials_are_sent_without_a_token(hub: Hub) -> None:
    tip(hub.git_url)
    assert hub.requests == [("GET", "/git/demo/floxmeta/info/refs?service=git-upload-pack", None)]


@pytest.mark.parametrize("name", [Reference("demo", "nothing"), Reference("nobody", "hello")])
def test_what_the_hub_does_not_have_is_not_found(hub: Hub, name: Reference) -> None:
    with pytest.raises(EnvironmentNotFoundError, match=name.environment):
        tip(hub.git_url, name)


def test_a_private_environment_needs_its_own_token(hub: Hub, data: HubData) -> None:
    data.restrict("demo", "flox_right")
    assert tip(hub.git_url, token="flox_right") == data.commit("demo", "hello")
    with pytest.raises(AccessDeniedError, match="only with a token"):
        tip(hub.git_url)
    with pytest.raises(AccessDeniedError, match="refuses") as refused:
        tip(hub.git_url, token="flox_wrong")
    assert "flox_wrong" not in str(refused.value)
    data.restrict("demo", "flox_right", hidden=True)
    with pytest.raises(EnvironmentNotFoundError):
        tip(hub.git_url, token="flox_wrong")


@pytest.mark.parametrize("status", [401, 403])
def test_a_pod_without_a_token_is_not_told_that_its_token_is_refused(hub: Hub, data: HubData, status: int) -> None:
    data.break_with("status", status=status)
    with pytest.raises(AccessDeniedError, match="has none"):
        tip(hub.git_url)
    with pytest.raises(AccessDeniedError, match=f"refuses the pod's token .*{status}"):
        tip(hub.git_url, token="flox_x")


@pytest.mark.parametrize("status", [500, 502, 503, 429, 301, 302, 418])
def test_a_hub_in_trouble_is_the_networks_fault(hub: Hub, data: HubData, status: int) -> None:
    data.break_with("status", status=status)
    with pytest.raises(NetworkError, match=str(status)):
        tip(hub.git_url)


def test_a_hub_that_hangs_costs_no_more_than_the_deadline(hub: Hub, data: HubData) -> None:
    data.break_with("hang")
    with pytest.raises(NetworkError, match="in time"):  # the hub itself never ends the connection
        tip(hub.git_url, seconds=0.5)


def test_a_closed_port_is_the_networks_fault() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(NetworkError, match="Connection refused"):
        tip(f"http://127.0.0.1:{port}/git")


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n"
_SERVICE = b"001e# service=git-upload-pack\n0000"


@contextlib.contextmanager
def raw(answer: Iterable[bytes], pause: float = 0) -> Iterator[str]:
    """A server that sends these pieces to whoever connects, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    for piece in answer:
                        connection.sendall(piece)
                        time.sleep(pause)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/git"
        server.close()
        thread.join()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        _SERVICE,
        _SERVICE + b"zzzz",
        _SERVICE + b"-001",
        _SERVICE + b"0003",
        _SERVICE + b"00ff" + b"a" * 40,
        _SERVICE + b"003f" + b"g" * 40 + b" refs/heads/hello\0 caps",
        _SERVICE + b"0010ERR go away!",
        b"000ewrong stuff0000",
    ],
)
def test_an_answer_that_is_no_hubs_is_the_networks_fault(body: bytes) -> None:
    with raw([_HEAD + b"\r\n" + body]) as url, pytest.raises(NetworkError):
        tip(url)


def test_a_login_page_is_told_from_a_hub() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html>"
    with raw([page]) as url, pytest.raises(NetworkError, match="proxy"):
        tip(url)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floxhub, "_LARGEST_ANSWER", 1 << 16)
    line = b"003f" + b"a" * 40 + b" refs/heads/other1\n"
    line = b"%04x" % (len(line)) + line[4:]
    with raw([_HEAD + b"\r\n" + _SERVICE, *([line * 1000] * 2)]) as url, pytest.raises(NetworkError, match="MiB"):
        tip(url)


def test_one_byte_at_a_time_does_not_outlast_the_deadline() -> None:
    branch = b"003e" + b"a" * 40 + b" refs/heads/other\n"
    endless = (bytes([byte]) for byte in itertools.chain(_HEAD, b"\r\n", _SERVICE, itertools.cycle(branch)))
    with raw(endless, pause=0.05) as url, pytest.raises(NetworkError):
        tip(url, seconds=0.4)


def test_of_an_owner_with_many_environments_one_branch_is_asked_for(hub: Hub, data: HubData) -> None:
    commit = data.commit("demo", "hello")
    refs = "".join(f"create refs/heads/a{number:05} {commit}\n" for number in range(3000))
    repository = str(data.repository("demo"))
    subprocess.run(["git", "--git-dir", repository, "update-ref", "--stdin"], input=refs, text=True, check=True)
    before = len(hub.requests)
    assert tip(hub.git_url) == commit
    assert [(method, path.rpartition("/")[2]) for method, path, _ in hub.requests[before:]] == [
        ("GET", "refs?service=git-upload-pack"),
        ("POST", "git-upload-pack"),
    ]
    with pytest.raises(EnvironmentNotFoundError):
        tip(hub.git_url, Reference("demo", "zzz"))
    before = len(hub.requests)
    assert tip(hub.git_url, Reference("demo", "a00001")) == commit
    assert len(hub.requests) == before + 1, "it stands among the first ones"


def test_the_policys_proxy_is_asked_for_whom_it_is_meant(hub: Hub, data: HubData) -> None:
    network = Network(http_proxy=hub.url, no_proxy=("direct.example.com", ".cluster.local"))
    deadline = Deadline.after(LONG_S)
    url = "http://hub.example.com/git"
    found = floxhub.tip(HELLO, git_url=url, token=None, deadline=deadline, network=network)
    assert found == data.commit("demo", "hello")
    assert hub.requests[-1][1].startswith(f"{url}/demo/floxmeta/info/refs")
    assert network.proxy_for("http", "direct.example.com") is None
    assert network.proxy_for("http", "a.cluster.local") is None
    assert network.proxy_for("https", "hub.example.com") is None
    assert Network(http_proxy=hub.url, no_proxy=("*",)).proxy_for("http", "hub.example.com") is None
    networks = Network(http_proxy=hub.url, no_proxy=("10.0.0.0/8", "fd00::/8", "not/a/network", "Hub.Acme.com"))
    for host in ("10.1.2.3", "fd00::1", "hub.acme.com"):
        assert networks.proxy_for("http", host) is None
    for host in ("11.1.2.3", "hub.example.com", "10.example.com"):
        assert networks.proxy_for("http", host) == hub.url
