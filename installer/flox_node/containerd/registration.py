"""How a handler comes into a containerd's configuration for good: which files of the node say so, on which platform.

A registration is data plus two pure functions. Where the configuration is rendered anew at a start or a boot (k3s,
EKS), the files that count are the platform's own extension points, and the rendered file is only what they lead to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from flox_node.containerd import placement
from flox_node.containerd.editor import Handler
from flox_node.containerd.effective import Reader, load
from flox_node.containerd.placement import Edit
from flox_node.containerd.version import ContainerdVersion
from flox_node.errors import CorruptError


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
        """The edits that take the handler out again; () when it is nowhere."""
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


@known
@dataclass(frozen=True)
class Plain:
    """Nobody rewrites the configuration: the files themselves are edited, as `placement` decides."""

    kind: ClassVar[str] = "plain"

    config: str

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        edits = placement.place(load(self.config, reader, version), reader, handler, adopt=adopt)
        return tuple(edit for edit in edits if edit.patch.changed)

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        return placement.withdraw(load(self.config, reader, version), reader, handler)
