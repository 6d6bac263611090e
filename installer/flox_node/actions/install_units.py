"""The units of the node's systemd that work with no DaemonSet: rollback, boot, collection.

They are real files, because a unit that is a symlink into /nix is gone when /nix is not mounted, and unreadable to
systemd under SELinux.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flox_node.actions.base import Action, Before, Gap, Owned, Progress, register
from flox_node.containerd.live import commit
from flox_node.host import Host
from flox_node.names import BIN
from flox_node.state.ledger import STATE_DIR

FOLDER = "/etc/systemd/system"
TIMER = "flox-node-gc.timer"
WANTS = (f"{FOLDER}/multi-user.target.wants", f"{FOLDER}/timers.target.wants")
"""The folders that enable units; they must be there."""
_TEMPLATES = Path(__file__).with_name("units")
_WANTED_BY = {
    "flox-node-rollback.service": "multi-user.target",
    "flox-node-boot.service": "multi-user.target",
    "flox-node-gc.service": None,
    TIMER: "timers.target",
}
_STOP_S = 30.0


@register
@dataclass(frozen=True)
class InstallUnits(Action[Gap]):
    """Write the units, enable them, start the timer. The rollback is ordered before `containerd_unit`."""

    kind: ClassVar[str] = "install-units"

    containerd_unit: str

    def describe(self) -> str:
        return f"install the units of the rollback, the boot and the collection in {FOLDER}"

    def inspect(self, host: Host) -> Gap | None:
        for path, data in self._files():
            if host.files.read_optional(path) != data:
                return Gap(f"{path} is not there or not what it was", (path,))
        for link, target in self._links():
            if host.files.readlink(link) != target:
                return Gap(f"{link} does not enable its unit", (link,))
        return None

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        """See Action.

        Raises:
            OutsideError: systemd cannot be reached.
        """
        for path, data in self._files():
            host.files.write_atomic(path, data, 0o644)
        for link, target in self._links():
            host.files.symlink_atomic(link, target)
        host.systemd.reload()
        host.systemd.start(TIMER, timeout=_STOP_S)

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> None:
        """Stop, disable and remove them."""
        host.systemd.stop(TIMER, timeout=_STOP_S)
        for path, _ in [*self._links(), *self._files()]:
            host.files.remove(path)
        host.systemd.reload()

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        return (Owned(path) for path, _ in [*self._files(), *self._links()])

    def _files(self) -> Iterator[tuple[str, bytes]]:
        yield commit.SCRIPT, _script()
        values = {
            "@state@": STATE_DIR,
            "@script@": commit.SCRIPT,
            "@program@": f"{BIN}/flox-node",
            "@unit@": self.containerd_unit,
        }
        for name in _WANTED_BY:
            text = (_TEMPLATES / name).read_text()
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            yield f"{FOLDER}/{name}", text.encode()

    def _links(self) -> Iterator[tuple[str, str]]:
        for name, target in _WANTED_BY.items():
            if target is not None:
                yield f"{FOLDER}/{target}.wants/{name}", f"../{name}"


def put_script(host: Host) -> None:
    """Have the rollback's script on the node, for a change that is made before, or long after, the units."""
    if host.files.read_optional(commit.SCRIPT) != _script():
        host.files.write_atomic(commit.SCRIPT, _script(), 0o644)


def _script() -> bytes:
    return (_TEMPLATES / posixpath.basename(commit.SCRIPT)).read_bytes()
