"""What a registration is, and its way into the receipt and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import CorruptError


@dataclass(frozen=True)
class NextStart:
    """What the platform makes of its own inputs when it starts containerd the next time, without us.

    `inputs` are the files and folders that it reads, `files` what it will have written then, as far as it is known;
    `untold` are inputs of which that cannot be told, each with the reason. `root` is the file that containerd is
    started with then, where that is another one.
    """

    inputs: tuple[str, ...] = ()
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    untold: Mapping[str, str] = field(default_factory=dict)
    root: str = ""


class Registration(Protocol):
    """One way to register a handler. All paths are the node's."""

    kind: ClassVar[str]

    @property
    def config(self) -> str:
        """The root file that containerd is started with."""
        ...

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """The files that still have to be written; () when all is there.

        Raises:
            RefusedError: registering would be wrong here, and why.
        """
        ...

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """The edits that take the handler out again; () when it is nowhere.

        One that changes nothing says that a file of ours stays, because others rely on it.
        """
        ...

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """What a restart makes of the platform's inputs; nothing where containerd reads what lies there."""
        ...


_KINDS: dict[str, type[Any]] = {}
_R = TypeVar("_R", bound=type[Any])


def known(cls: _R) -> _R:
    """Class decorator: make the kind known to `from_json`."""
    _KINDS[cls.kind] = cls
    return cls


def to_json(registration: Any) -> dict[str, Any]:
    """A registration as the receipt holds it."""
    return {"kind": registration.kind, **dataclasses.asdict(registration)}


def from_json(body: Mapping[str, Any]) -> Registration:
    """The registration that `to_json` wrote.

    Raises:
        CorruptError: a kind or fields that this version does not know.
    """
    try:
        fields = {name: value for name, value in body.items() if name != "kind"}
        return _KINDS[body["kind"]](**fields)  # type: ignore[no-any-return]
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"The receipt holds a registration that this version cannot read: {body.get('kind')}.",
            remedy="Use the version of flox-node that installed this node.",
        ) from error


def changed(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Those that have something to write, each file once (several roots may share a file)."""
    return tuple({edit.path: edit for edit in edits if edit.changed}.values())
