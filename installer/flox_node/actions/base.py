"""The shape of an action, and its way into the journal and back.

An action is the unit of reversion (the model is nix-installer's): it says what it wants, finds out whether the node is
so already, brings it there, and takes it back. Every method tolerates that it ran before and was killed anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from flox_node.errors import CorruptError
from flox_node.host import Host

Before = Mapping[str, Any]
Progress = Callable[[str], None]
"""Called with the name of each step that an action has taken; the transaction journals it."""


@dataclass(frozen=True)
class Missing:
    """Why an action is needed: what the node lacks, in words for a person."""

    reason: str


@dataclass(frozen=True)
class Kept:
    """What a revert left on the node, and why.

    `waits`: it is in use, and a later uninstall takes it back; else it is no longer ours to remove.
    """

    reason: str
    waits: bool = True


class Action(Protocol):
    """One reversible step of an install."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """Names the action on this node over versions and runs: two actions with one key are about the same thing."""
        ...

    def describe(self) -> str:
        """One line for a person: what it does."""
        ...

    def inspect(self, host: Host) -> Missing | None:
        """What the node lacks, or None when it is as this action wants it. Never writes."""
        ...

    def preview(self, host: Host) -> str:
        """A unified diff of what would be written, or nothing where there is no text to show."""
        ...

    def capture(self, host: Host) -> Before | None:
        """What revert needs to know, taken and made durable before execute; None when an earlier capture holds."""
        ...

    def execute(self, host: Host, progress: Progress) -> None:
        """Bring the node there."""
        ...

    def revert(self, host: Host, before: Before, *, purge: bool) -> Kept | None:
        """Take it back, and say what of it stays; `purge` takes back what a plain uninstall keeps."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """An action that can be unsafe on a node; it is asked before a run writes anything at all."""

    def preflight(self, host: Host) -> None:
        """Make sure that `execute` may be tried.

        Raises:
            FloxNodeError: why it may not.
        """
        ...


_KINDS: dict[str, type[Any]] = {}
_A = TypeVar("_A", bound=type[Any])


def register(cls: _A) -> _A:
    """Class decorator: make the kind known to `action_from_json`."""
    _KINDS[cls.kind] = cls
    return cls


def action_to_json(action: Any) -> dict[str, Any]:
    """The action as the journal and the receipt hold it. Fields whose name starts with `_` stay out."""
    fields = dataclasses.fields(action)
    body = {field.name: getattr(action, field.name) for field in fields if field.metadata.get("recorded", True)}
    return {"kind": action.kind, **body}


def action_from_json(body: Mapping[str, Any]) -> Action:
    """The action that `action_to_json` wrote; fields of a newer version that we do not know are left out.

    Raises:
        CorruptError: unknown kind or missing fields.
    """
    try:
        cls = _KINDS[body["kind"]]
        known = {field.name for field in dataclasses.fields(cls)}
        arguments = {name: _frozen(value) for name, value in body.items() if name in known}
        return cls(**arguments)  # type: ignore[no-any-return]
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"The receipt holds an action that this version cannot read: {body.get('kind')}.",
            remedy="Use the version of flox-node that installed this node.",
        ) from error


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
