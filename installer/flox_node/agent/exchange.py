"""What the two containers tell each other, through a folder that one of them writes and the other one only reads.

What comes from the other side is bad input until parsed: a compromised reporter must not reach the node through a file
(a symlink, a pipe, a gigabyte), nor the other way round.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flox_node import atomic
from flox_node.environments.notices import Notice
from flox_node.kube.names import Happening, Phase, Reason

NODE = Path("/exchange/node")
"""Written by `node`: state.json, pods.json."""
REPORTER = Path("/exchange/reporter")
"""Written by `reporter`: slot.json, reported.json, told.json."""
_LIMIT = 1 << 16

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """Something that happened to the node, worth an event. `number` counts them."""

    number: int
    reason: Happening
    message: str

    @property
    def is_warning(self) -> bool:
        """Whether somebody should look."""
        return self.reason in (Happening.ROLLED_BACK, Happening.REFUSED, Happening.FAILED)


@dataclass(frozen=True)
class NodeState:
    """What `node` tells. `live`: the CRI serves the handler. `slot`: the id of its wish to restart containerd, or "".

    `target` names what is being rolled out, `share` how many nodes at a time; `identity` changes when the kubelet may
    have registered the node anew.
    """

    reason: Reason = Reason.INSTALLING
    message: str = ""
    live: bool = False
    slot: str = ""
    target: str = ""
    share: str = "1"
    identity: str = ""
    platform: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    event: Event | None = None

    @property
    def phase(self) -> Phase:
        """Where the node stands."""
        return self.reason.phase

    @property
    def digest(self) -> str:
        """It is the same for two states that need no report in between."""
        told = (self.reason, self.message, self.live, self.identity, self.versions, self.event)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> NodeState:
        """Parse state.json; ValueError, TypeError or KeyError where it is none."""
        event = body.get("event")
        return cls(
            reason=Reason(body["reason"]),
            live=body["live"] is True,
            versions={str(name): str(value) for name, value in dict(body["versions"]).items()},
            event=None
            if event is None
            else Event(int(event["number"]), Happening(event["reason"]), str(event["message"])),
            **{name: str(body[name]) for name in ("message", "slot", "target", "share", "identity", "platform")},
        )


@dataclass(frozen=True)
class PodNews:
    """What the node has to say to pods on it (pods.json)."""

    notices: tuple[Notice, ...] = ()

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> PodNews:
        """Parse pods.json."""
        return cls(tuple(Notice.from_json(item) for item in body["notices"]))


@dataclass(frozen=True)
class Told:
    """The ids of the notices that became events (told.json)."""

    ids: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Told:
        """Parse told.json."""
        return cls(tuple(str(item) for item in body["ids"]))


@dataclass(frozen=True)
class Granted:
    """The slot wish that the reporter holds a lease for, or "" (slot.json)."""

    slot: str = ""

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Granted:
        """Parse slot.json."""
        return cls(str(body["slot"]))


@dataclass(frozen=True)
class Reported:
    """What the API server was told last: the digest of a state, and the number of an event (reported.json)."""

    state: str = ""
    event: int = 0

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Reported:
        """Parse reported.json."""
        return cls(str(body["state"]), int(body["event"]))


def write(folder: Path, name: str, value: Any) -> None:
    """Replace `name` in the folder by a dataclass as JSON; nothing is written where it says that already."""
    data = json.dumps(dataclasses.asdict(value), sort_keys=True).encode()
    if _read(folder / name) == data:
        return
    atomic.write(str(folder / name), data, durable=False)


def read(folder: Path, name: str, kind: type[T]) -> T | None:
    """What the other side wrote; None where there is nothing (yet), or nothing that can be understood."""
    data = _read(folder / name)
    if data is None:
        return None
    try:
        body = json.loads(data)
        return kind.from_json(body)  # type: ignore[attr-defined,no-any-return]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = file.read(_LIMIT + 1)
    return data if len(data) <= _LIMIT else None
