"""A folder of ours on the node.

A folder that a plain uninstall keeps carries a mark inside, so that a later install and its purge still know that it
was made by us and not found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Action, Before, Gap, Kept, Owned, Progress, register
from flox_node.actions.in_use import folder_in_use
from flox_node.host import Host
from flox_node.names import PREFIX


@register
@dataclass(frozen=True)
class CreateDirectory(Action[Gap]):
    """Make `path` with exactly `mode`.

    `keep`: only a purge removes it, then with all in it (the store, the policy's folder). Else it goes when empty.
    """

    kind: ClassVar[str] = "create-directory"

    path: str
    mode: int = 0o755
    keep: bool = False

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.path}"

    def describe(self) -> str:
        return f"create the folder {self.path}"

    def inspect(self, host: Host) -> Gap | None:
        return None if host.files.is_dir(self.path) else Gap(f"{self.path} is not there", (self.path,))

    @property
    def _is_ours_by_name(self) -> bool:
        return self.path == PREFIX or self.path.startswith(f"{PREFIX}/")  # whatever became of the receipt

    def capture(self, host: Host, gap: Gap | None, known: Before | None) -> Before | None:
        made_by_us = self._is_ours_by_name or not host.files.is_dir(self.path) or was_made(host, self.path)
        return {"created": True} if made_by_us else None

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        if host.files.mkdir(self.path, self.mode) and self.keep:
            host.files.write_atomic(_mark(self.path), b"")

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> Kept | None:
        """Remove the folder, but only if we made it."""
        if not before.get("created"):
            return None
        if self.keep and purge:
            if in_use := folder_in_use(host, self.path):
                return Kept(in_use)
            host.files.remove_tree(self.path)
        elif not self.keep:
            if host.files.listdir(self.path):
                return Kept(f"{self.path} is not empty", waits=False)
            host.files.remove(self.path)
        return None

    def preview_revert(self, host: Host, before: Before, *, purge: bool) -> tuple[str, Kept | None]:
        return "", None if purge or not (self.keep and before.get("created")) else Kept(
            f"only --purge removes {self.path}", waits=False
        )

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        """A folder of ours; one that was only missing (/opt) is nobody's, and goes when it is empty."""
        if self._is_ours_by_name or (self.keep and was_made(host, self.path)):
            yield Owned(self.path, watched=False)


def was_made(host: Host, path: str) -> bool:
    """Whether a folder that outlives an uninstall is one that we made."""
    return host.files.lexists(_mark(path))


def _mark(path: str) -> str:
    return f"{path}/.created-by-flox-node"
