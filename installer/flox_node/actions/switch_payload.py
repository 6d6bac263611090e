"""Which payload is the current one, and the stable names of its programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Before, Missing, Progress, register
from flox_node.host import Host

PREFIX = "/opt/flox-node"
CURRENT = f"{PREFIX}/current"
BIN = f"{PREFIX}/bin"


@register
@dataclass(frozen=True)
class SwitchPayload:
    """Point `current` at a payload, and `bin/*` at its programs.

    containerd's configuration names `bin/flox-runtime` only, so switching never needs a restart.
    """

    kind: ClassVar[str] = "switch-payload"

    payload_id: str
    programs: tuple[str, ...]

    @property
    def key(self) -> str:
        """See Action."""
        return self.kind

    def describe(self) -> str:
        """See Action."""
        return f"make payload {self.payload_id} the current one"

    def inspect(self, host: Host) -> Missing | None:
        """See Action."""
        for path, target in self._links():
            if host.files.readlink(path) != target:
                return Missing(f"{path} does not point to {target}")
        return None

    def preview(self, host: Host) -> str:
        """See Action."""
        return ""

    def capture(self, host: Host) -> Before | None:
        """See Action."""
        return None if host.files.lexists(CURRENT) else {"created": True}

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action."""
        for path, target in self._links():
            if host.files.readlink(path) != target:
                host.files.symlink_atomic(path, target)

    def revert(self, host: Host, before: Before, *, purge: bool) -> None:
        """Remove the links: they are ours by name."""
        for path, _ in reversed(self._links()):
            host.files.discard_leftover(path)
            host.files.remove(path)

    def _links(self) -> list[tuple[str, str]]:
        # `current` first: the names in bin lead through it.
        names = [(f"{BIN}/{name}", f"../current/bin/{name}") for name in self.programs]
        return [(CURRENT, f"payloads/{self.payload_id}"), *names]
