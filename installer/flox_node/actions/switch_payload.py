"""Which payload is the current one, and the stable names of its programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Action, Before, Gap, Kept, Owned, Progress, register
from flox_node.actions.in_use import shim_in_use
from flox_node.host import Host
from flox_node.names import BIN, CURRENT, SHIM


@register
@dataclass(frozen=True)
class SwitchPayload(Action[Gap]):
    """Point `current` at a payload, and `bin/*` at its programs.

    containerd's configuration names `bin/flox-runtime` only, so switching never needs a restart.
    """

    kind: ClassVar[str] = "switch-payload"

    payload_id: str
    programs: tuple[str, ...]

    def describe(self) -> str:
        return f"make payload {self.payload_id} the current one"

    def inspect(self, host: Host) -> Gap | None:
        for path, target in self._links():
            if host.files.readlink(path) != target:
                return Gap(f"{path} does not point to {target}", (path,))
        return None

    def capture(self, host: Host, gap: Gap | None, known: Before | None) -> Before | None:
        return None if host.files.lexists(CURRENT) else {"created": True}

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        for path, target in self._links():
            if host.files.readlink(path) != target:
                host.files.symlink_atomic(path, target)

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> Kept | None:
        """Remove the links: they are ours by name. A shim that a running container needs becomes a file of its own."""
        in_use = shim_in_use(host)
        if in_use and host.files.readlink(SHIM) is not None and host.files.exists(SHIM):
            host.files.copy_file(host.files.real(SHIM), SHIM, 0o555)
        for path, _ in reversed(self._links()):
            if not in_use or path != SHIM:
                host.files.remove(path)
        return Kept(in_use) if in_use else None

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        return (Owned(path) for path, _ in self._links())

    def _links(self) -> list[tuple[str, str]]:
        # `current` first: the names in bin lead through it.
        names = [(f"{BIN}/{name}", f"../current/bin/{name}") for name in self.programs]
        return [(CURRENT, f"payloads/{self.payload_id}"), *names]
