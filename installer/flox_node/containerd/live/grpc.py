"""gRPC over a unix socket with the standard library alone: one message there, one back.

gRPC's Python package is 12 MB of native code and 70 ms of import for a few unary calls, so the calls are made by hand:
one HTTP/2 connection with prior knowledge, one stream. Request headers are HPACK literals without indexing (RFC 7541,
6.2.2); the answer's header blocks need no decoding, because a successful unary gRPC answer always has a DATA frame and
a failed one has none.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_MAX_ANSWER = 64 * 1024 * 1024


class ProtocolError(Exception):
    """The other side ended the stream, or does not speak gRPC."""


def call(
    socket_path: Path, method: str, message: bytes = b"", *, timeout: float, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Send one message to a method ("/package.Service/Method") and return the first one of the answer.

    That is a unary call, or a stream of one message. `timeout` (seconds) holds for each step of it.

    Raises:
        ProtocolError: the server refused the call, or does not speak gRPC.
        OSError: nobody listens there, or the answer does not come.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(socket_path))
        return _exchange(connection, method, message, metadata or {})


def _exchange(connection: socket.socket, method: str, message: bytes, metadata: Mapping[str, str]) -> bytes:
    headers = b"".join(
        b"\0" + _prefixed(name) + _prefixed(value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata.items(),
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
            raise ProtocolError("a frame larger than any CRI answer")
        payload = _receive(connection, length)
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            connection.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY or (kind == _RESET and stream == 1):
            raise ProtocolError("the server refused the stream")
        elif kind == _DATA and stream == 1:
            body += payload
            if len(body) > _MAX_ANSWER:
                raise ProtocolError("an answer larger than any CRI answer")
        elif kind == _HEADERS and stream == 1:
            trailers = payload
        if stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            break
    if len(body) < 5:
        raise ProtocolError(_grpc_message(trailers))
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
            raise ProtocolError("the connection was closed")
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _prefixed(text: str) -> bytes:
    data = text.encode()
    return bytes([len(data)]) + data  # all of ours are shorter than 127 bytes: HPACK's one-byte length


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
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
            raise ProtocolError("an answer that ends in the middle")
        yield key >> 3, message[at : at + size]
        at += size


def as_bytes(value: int | bytes) -> bytes:
    """A field of bytes; empty where it is a number."""
    return value if isinstance(value, bytes) else b""


def as_number(value: int | bytes) -> int:
    """A field of a number; 0 where it is bytes."""
    return value if isinstance(value, int) else 0


def as_map(message: bytes, number: int) -> dict[str, str]:
    """The field `number` as a map of strings."""
    entries = (dict(fields(as_bytes(value))) for key, value in fields(message) if key == number)
    return {as_text(entry.get(1, b"")): as_text(entry.get(2, b"")) for entry in entries}


def as_text(value: int | bytes) -> str:
    """A field of text."""
    return as_bytes(value).decode(errors="replace")


def field(number: int, value: bytes | str | int) -> bytes:
    """One field of a message: a number as varint, text and bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def map_field(number: int, values: Mapping[str, str]) -> bytes:
    """A field that is a map of strings."""
    return b"".join(field(number, field(1, key) + field(2, value)) for key, value in values.items())


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
