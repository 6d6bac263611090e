"""The shape of an action, and its way into the journal and back.

An action is the unit of reversion (the model is nix-installer's): it says what it wants, finds out whether the node is
so already, brings it there, and takes it back. Every method tolerates that it ran before and was killed anywhere.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from flox_node.errors import CorruptError
from flox_node.host import Host

Before = Mapping[str, Any]
Progress = Callable[[str], None]
"""Called with the name of each step that an action has taken; the transaction journals it."""


@dataclass(frozen=True)
class Gap:
    """What a look at the node found missing: the reason in words for a person, and the paths that are not as wanted.

    An action that finds out more than that has a kind of gap of its own: what it looked up once is in there for its
    preview, its capture and its execution.
    """

    reason: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """What a revert left on the node, and why.

    `waits`: it is in use, and a later uninstall takes it back; else it is no longer ours to remove.
    """

    reason: str
    waits: bool = True


@dataclass(frozen=True)
class Owned:
    """A path of the node that an action answers for.

    `shared`: it is somebody's file with lines of ours in it, with the bytes from before us, where they are known; else
    it is ours, with all in it. `watched`: the agent watches it.
    """

    path: str
    shared: bool = False
    before_us: bytes | None = None
    watched: bool = True


G = TypeVar("G", bound=Gap)


class Action(ABC, Generic[G]):
    """One reversible step of an install: a frozen dataclass whose fields are what the receipt holds of it."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """Names the action on this node over versions and runs: two actions with one key are about the same thing."""
        return self.kind

    @abstractmethod
    def describe(self) -> str:
        """One line for a person: what it does."""

    @abstractmethod
    def inspect(self, host: Host) -> G | None:
        """What the node lacks, or None when it is as this action wants it. Never writes."""

    def preflight(self, host: Host, gap: G) -> None:
        """Make sure that `execute` may be tried; asked before a run writes anything at all.

        Raises:
            FloxNodeError: why it may not.
        """

    def preview(self, gap: G) -> str:
        """A unified diff of what would be written, or nothing where there is no text to show."""
        return ""

    def capture(self, host: Host, gap: G | None, known: Before | None) -> Before | None:
        """What revert needs to know, made durable before execute; None when what is `known` from before still holds.

        What is captured is the node without us: a second capture finds our own work there, and must not take it for
        somebody's. Without a `gap` all is there, and only the record of it is missing.
        """
        return {}

    @abstractmethod
    def execute(self, host: Host, gap: G, progress: Progress) -> None:
        """Bring the node there."""

    @abstractmethod
    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> Kept | None:
        """Take it back, and say what of it stays; `purge` takes back what a plain uninstall keeps."""

    def preview_revert(self, host: Host, before: Before, *, purge: bool) -> tuple[str, Kept | None]:
        """A unified diff of what a revert would write, and what it would leave. Never writes.

        Raises:
            FloxNodeError: why a revert would not be tried.
        """
        return "", None

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        """The paths that this action answers for: drift, the agent's watch, SELinux types and the undo ask for them."""
        return ()


_KINDS: dict[str, type[Any]] = {}
_A = TypeVar("_A", bound=type[Any])


def register(cls: _A) -> _A:
    """Class decorator: make the kind known to `action_from_json`."""
    _KINDS[cls.kind] = cls
    return cls


def action_to_json(action: Any) -> dict[str, Any]:
    """The action as the journal and the receipt hold it.

    A field with `recorded` false in its metadata stays out; one with `to_json` and `from_json` there is an object.
    """
    body = {
        field.name: field.metadata.get("to_json", _same)(getattr(action, field.name))
        for field in dataclasses.fields(action)
        if field.metadata.get("recorded", True)
    }
    return {"kind": action.kind, **body}


def action_from_json(body: Mapping[str, Any]) -> Action[Any]:
    """The action that `action_to_json` wrote; fields of a newer version that we do not know are left out.

    Raises:
        CorruptError: unknown kind or missing fields.
    """
    try:
        cls = _KINDS[body["kind"]]
        arguments = {
            field.name: field.metadata.get("from_json", _frozen)(body[field.name])
            for field in dataclasses.fields(cls)
            if field.name in body
        }
        return cls(**arguments)  # type: ignore[no-any-return]
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"The receipt holds an action that this version cannot read: {body.get('kind')}.",
            remedy="Use the version of flox-node that installed this node.",
        ) from error


def _same(value: object) -> object:
    return value


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
