"""The few CRI calls that an installer needs, over the standard library alone.

gRPC's Python package is 12 MB of native code and 70 ms of import for three unary calls, so the calls are made by hand:
one HTTP/2 connection with prior knowledge, one stream. Request headers are HPACK literals without indexing (RFC 7541,
6.2.2); the answer's header blocks need no decoding, because a successful unary gRPC answer always has a DATA frame and
a failed one has none. Field numbers are those of k8s.io/cri-api runtime.v1.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flox_node.errors import OutsideError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_CONTAINER_EXITED = 2
_MAX_ANSWER = 64 * 1024 * 1024


@dataclass(frozen=True)
class RuntimeHandler:
    """A handler as the running daemon knows it. `features_known` is None where containerd reports none at all (1.x)."""

    name: str
    runtime_type: str
    options: Mapping[str, object]
    features_known: bool | None

    @property
    def binary_name(self) -> str:
        """`options.BinaryName`, empty when unset (containerd then looks for runc on its PATH)."""
        return str(self.options.get("BinaryName") or "")


@dataclass(frozen=True)
class CriStatus:
    """What the running daemon says of itself: version text ("1.7.24~ds1"), handlers by name, the default handler."""

    version: str
    handlers: Mapping[str, RuntimeHandler]
    default_handler: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Sandbox:
    """A pod sandbox of the node. `created_at` is in nanoseconds since the epoch."""

    id: str
    namespace: str
    name: str
    handler: str
    ready: bool
    created_at: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """A container of the node. `exited` is false for one that was created or is in a state that nobody knows, too."""

    id: str
    sandbox_id: str
    name: str
    exited: bool


class CriClient:
    """The CRI of one containerd. `socket_path` lies in our own namespace."""

    def __init__(self, socket_path: Path, *, timeout: float = 10.0) -> None:
        self._socket_path = socket_path
        self._timeout = timeout

    def status(self) -> CriStatus:
        """Ask the running daemon for its version and its handlers.

        Raises:
            OutsideError: the socket does not answer, or containerd runs without its CRI plugin.
        """
        with _reported():
            return self._status()

    def _status(self) -> CriStatus:
        version = ""
        for number, value in _fields(self._call("Version")):
            if number == 3:
                version = _text(value)
        config: dict[str, Any] = {}
        features: dict[str, bool] = {}
        for number, value in _fields(self._call("Status", b"\x08\x01")):  # verbose = true
            if number == 2:
                entry = dict(_fields(_bytes(value)))
                if entry.get(1) == b"config":
                    config = json.loads(_bytes(entry[2]))
            elif number == 3:
                handler = dict(_fields(_bytes(value)))
                features[_text(handler.get(1, b""))] = 2 in handler
        table = config.get("containerd") or {}
        handlers = {
            name: RuntimeHandler(
                name=name,
                runtime_type=str(runtime.get("runtimeType") or runtime.get("runtime_type") or ""),
                options=runtime.get("options") or {},
                features_known=features.get(name) if features else None,
            )
            for name, runtime in (table.get("runtimes") or {}).items()
        }
        default = str(table.get("defaultRuntimeName") or table.get("default_runtime_name") or "runc")
        return CriStatus(version, handlers, default, config)

    def sandboxes(self) -> list[Sandbox]:
        """All pod sandboxes, ready or not.

        Raises:
            OutsideError: as `status`.
        """
        with _reported():
            return self._sandboxes()

    def _sandboxes(self) -> list[Sandbox]:
        found = []
        for number, value in _fields(self._call("ListPodSandbox")):
            if number != 1:
                continue
            sandbox = dict(_fields(_bytes(value)))
            metadata = dict(_fields(_bytes(sandbox.get(2, b""))))
            found.append(
                Sandbox(
                    id=_text(sandbox.get(1, b"")),
                    namespace=_text(metadata.get(3, b"")),
                    name=_text(metadata.get(1, b"")),
                    handler=_text(sandbox.get(7, b"")),
                    ready=sandbox.get(3, 0) == 0,  # SANDBOX_READY is 0, and proto3 leaves zeroes out
                    created_at=_number(sandbox.get(4, 0)),
                    annotations=_map(_bytes(value), 6),
                )
            )
        return found

    def containers(self) -> list[Container]:
        """All containers, whatever their state.

        Raises:
            OutsideError: as `status`.
        """
        with _reported():
            return self._containers()

    def _containers(self) -> list[Container]:
        found = []
        for number, value in _fields(self._call("ListContainers")):
            if number != 1:
                continue
            container = dict(_fields(_bytes(value)))
            metadata = dict(_fields(_bytes(container.get(3, b""))))
            found.append(
                Container(
                    id=_text(container.get(1, b"")),
                    sandbox_id=_text(container.get(2, b"")),
                    name=_text(metadata.get(1, b"")),
                    exited=container.get(6, 0) == _CONTAINER_EXITED,
                )
            )
        return found

    def wait(self, deadline_s: float) -> CriStatus:
        """Ask until it answers: after a restart the socket is there before the CRI plugin is.

        Raises:
            OutsideError: the last error, when the deadline (seconds from now) passes.
        """
        end = time.monotonic() + deadline_s
        while True:
            try:
                return self.status()
            except OutsideError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.05)

    def _call(self, method: str, message: bytes = b"") -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self._timeout)
            connection.connect(str(self._socket_path))
            return _unary(connection, f"/runtime.v1.RuntimeService/{method}", message)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Whatever goes wrong with the other side is one error: it does not answer, or not with what the CRI answers."""
    try:
        yield
    except (OSError, _ProtocolError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise OutsideError(
            f"containerd's CRI does not answer: {error}.",
            remedy="Check `systemctl status containerd` and `journalctl -u containerd` on the node.",
        ) from error


class _ProtocolError(Exception):
    """The other side ended the stream, or does not speak gRPC."""


def _unary(connection: socket.socket, method: str, message: bytes) -> bytes:
    headers = b"".join(
        b"\0" + _prefixed(name) + _prefixed(value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
    )
    window = 0x7FFF0000  # as good as no flow control: an answer is bounded by _MAX_ANSWER
    connection.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))
        + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", window))
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )
    body = b""
    trailers = b""
    while True:
        length_and_kind, flags, stream = struct.unpack(">IBI", _receive(connection, 9))
        length, kind = length_and_kind >> 8, length_and_kind & 0xFF
        if length > _MAX_ANSWER:
            raise _ProtocolError("a frame larger than any CRI answer")
        payload = _receive(connection, length)
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            connection.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY or (kind == _RESET and stream == 1):
            raise _ProtocolError("the server refused the stream")
        elif kind == _DATA and stream == 1:
            body += payload
            if len(body) > _MAX_ANSWER:
                raise _ProtocolError("an answer larger than any CRI answer")
        elif kind == _HEADERS and stream == 1:
            trailers = payload
        if stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            break
    if len(body) < 5:
        raise _ProtocolError(_grpc_message(trailers))
    return body[5 : 5 + struct.unpack(">I", body[1:5])[0]]


def _grpc_message(trailers: bytes) -> str:
    # grpc-go sends its message as a plain or Huffman-coded literal; only the plain form is readable without a decoder.
    words = re.findall(rb"[ -~]{12,}", trailers)
    text = b" ".join(words).decode()
    return text or "gRPC error (is the CRI plugin loaded?)"


def _receive(connection: socket.socket, count: int) -> bytes:
    chunks = []
    while count:
        chunk = connection.recv(min(count, 1 << 20))
        if not chunk:
            raise _ProtocolError("the connection was closed")
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _prefixed(text: str) -> bytes:
    data = text.encode()
    return bytes([len(data)]) + data  # all of ours are shorter than 127 bytes: HPACK's one-byte length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message as (number, value); unknown ones are for the caller to skip."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            size = varint()
        if at + size > len(message):
            raise _ProtocolError("an answer that ends in the middle")
        yield key >> 3, message[at : at + size]
        at += size


def _bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b""


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _map(message: bytes, number: int) -> dict[str, str]:
    entries = (dict(_fields(_bytes(value))) for key, value in _fields(message) if key == number)
    return {_text(entry.get(1, b"")): _text(entry.get(2, b"")) for entry in entries}


def _text(value: int | bytes) -> str:
    return _bytes(value).decode(errors="replace")
