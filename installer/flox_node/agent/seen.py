"""What a look at the node found (`observe`), as the resident loop keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Seen:
    """What one look found.

    `needed` are the keys of the actions that an install would carry out; `restart`: one of them may restart containerd.
    `error` is why that cannot be told, as `FloxNodeError.as_dict`. `folders` and `paths` are the node's: what to watch,
    and the fingerprints that the paths had before anything was looked at.
    """

    installed: bool = False
    upgrade: bool = False
    live: bool = False
    platform: str = ""
    payload: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    identity: str = ""
    needed: tuple[str, ...] = ()
    reason: str = ""
    restart: bool = False
    drift: int = 0
    error: dict[str, Any] | None = None
    folders: tuple[str, ...] = ()
    paths: dict[str, list[int]] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Seen:
        """What `flox-node-agent look` printed."""
        return cls(**{**body, **{name: tuple(body[name]) for name in ("needed", "folders")}})
