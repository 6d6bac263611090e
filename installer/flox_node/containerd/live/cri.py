"""The few CRI calls that an installer needs. Field numbers are those of k8s.io/cri-api runtime.v1."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flox_node.containerd.live.grpc import ProtocolError, as_bytes, as_map, as_number, as_text, call, fields
from flox_node.errors import OutsideError

_CONTAINER_EXITED = 2


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
        for number, value in fields(self._call("Version")):
            if number == 3:
                version = as_text(value)
        config: dict[str, Any] = {}
        features: dict[str, bool] = {}
        for number, value in fields(self._call("Status", b"\x08\x01")):  # verbose = true
            if number == 2:
                entry = dict(fields(as_bytes(value)))
                if entry.get(1) == b"config":
                    config = json.loads(as_bytes(entry[2]))
            elif number == 3:
                handler = dict(fields(as_bytes(value)))
                features[as_text(handler.get(1, b""))] = 2 in handler
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
        for number, value in fields(self._call("ListPodSandbox")):
            if number != 1:
                continue
            sandbox = dict(fields(as_bytes(value)))
            metadata = dict(fields(as_bytes(sandbox.get(2, b""))))
            found.append(
                Sandbox(
                    id=as_text(sandbox.get(1, b"")),
                    namespace=as_text(metadata.get(3, b"")),
                    name=as_text(metadata.get(1, b"")),
                    handler=as_text(sandbox.get(7, b"")),
                    ready=sandbox.get(3, 0) == 0,  # SANDBOX_READY is 0, and proto3 leaves zeroes out
                    created_at=as_number(sandbox.get(4, 0)),
                    annotations=as_map(as_bytes(value), 6),
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
        for number, value in fields(self._call("ListContainers")):
            if number != 1:
                continue
            container = dict(fields(as_bytes(value)))
            metadata = dict(fields(as_bytes(container.get(3, b""))))
            found.append(
                Container(
                    id=as_text(container.get(1, b"")),
                    sandbox_id=as_text(container.get(2, b"")),
                    name=as_text(metadata.get(1, b"")),
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
        return call(self._socket_path, f"/runtime.v1.RuntimeService/{method}", message, timeout=self._timeout)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Whatever goes wrong with the other side is one error: it does not answer, or not with what the CRI answers."""
    try:
        yield
    except (OSError, ProtocolError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise OutsideError(
            f"containerd's CRI does not answer: {error}.",
            remedy="Check `systemctl status containerd` and `journalctl -u containerd` on the node.",
        ) from error
