"""The CRI client against real gRPC servers, and against things that are none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from flox_node.containerd.live.cri import CriClient
from flox_node.errors import OutsideError
from tests.unit.fake_node import FakeNode


@contextmanager
def _grpc_server(path: Path, answer: Callable[[], bytes]) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer())
    methods = dict.fromkeys(("Version", "Status", "ListPodSandbox"), handler)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods),))
    server.add_insecure_port(f"unix://{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def _raw_server(path: Path, reply: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


def test_handlers_options_and_the_default_are_read(tmp_path: Path) -> None:
    node = FakeNode(tmp_path / "node", version="1.7.24~ds1")
    with node.containerd.serving():
        status = CriClient(node.root / "run/containerd/containerd.sock").status()
    assert status.version == "1.7.24~ds1"
    assert status.default_handler == "runc"
    assert status.handlers["runc"].runtime_type == "io.containerd.runc.v2"
    assert status.handlers["runc"].options == {"SystemdCgroup": True}
    assert status.handlers["runc"].features_known is None, "1.x reports no features at all"


def test_an_answer_larger_than_any_frame_arrives_whole(tmp_path: Path) -> None:
    runtimes = {f"handler-{number}": {"runtimeType": "x" * 5000} for number in range(200)}
    config = json.dumps({"containerd": {"runtimes": runtimes}}).encode()

    def field(number: int, value: bytes) -> bytes:
        length, size = b"", len(value)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + value

    answer = field(2, field(1, b"config") + field(2, config))
    with _grpc_server(tmp_path / "s", lambda: answer):
        assert len(CriClient(tmp_path / "s").status().handlers) == 200


def test_a_containerd_without_its_cri_plugin_is_an_error_that_says_so(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    server.add_insecure_port(f"unix://{tmp_path}/s")
    server.start()
    try:
        with pytest.raises(OutsideError, match="CRI does not answer"):
            CriClient(tmp_path / "s").status()
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff\xff\xff\x00\x01\x00\x00\x00\x01",
        b"\x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x00\x00\xff\xff",
    ],
)
def test_what_is_no_grpc_server_is_an_error_and_not_a_hang(tmp_path: Path, reply: bytes) -> None:
    with _raw_server(tmp_path / "s", reply), pytest.raises(OutsideError):
        CriClient(tmp_path / "s", timeout=0.5).status()  # an answer that is half one is waited for


@pytest.mark.parametrize(
    "answer", [b"\x12\x7f", b"\xff", b"\x12\x0a\x0a\x06config\x12\x00", b"\x12\x0c\x0a\x06config\x12\x02[]"]
)
def test_an_answer_that_is_no_status_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with _grpc_server(tmp_path / "s", lambda: answer), pytest.raises(OutsideError):
        CriClient(tmp_path / "s").status()


def test_a_socket_that_is_not_there_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutsideError) as error:
        CriClient(tmp_path / "none").status()
    assert "systemctl status containerd" in error.value.remedy


def test_waiting_ends_at_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(OutsideError):
        CriClient(tmp_path / "none").wait(0.2)
