"""/nix on a disk of its own: a folder elsewhere, bound there by a mount unit of the node's systemd.

systemd mounts it, because a mount made in a pod's namespace is not the node's, and because it has to be there at every
boot before the first pod. The unit is wanted and never required: a disk that is gone costs the Flox pods, not the node.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Action, Before, Gap, Kept, Owned, Progress, register
from flox_node.actions.in_use import folder_in_use
from flox_node.errors import OutsideError, RefusedError
from flox_node.host import Host

NIX = "/nix"
UNIT = "nix.mount"
WANTS = "/etc/systemd/system/multi-user.target.wants"
"""The folder that enables the unit; it must be there."""
_FILE = f"/etc/systemd/system/{UNIT}"
_LINK = f"{WANTS}/{UNIT}"
_MARK = "# flox-node wrote this unit and removes it."
_MADE = "# It also made the folder /nix."
_TEXT = """\
{mark}
[Unit]
Description=Nix store of flox-node
DefaultDependencies=no
Conflicts=umount.target
RequiresMountsFor={source}
Before=umount.target kubelet.service {units}

[Mount]
What={source}
Where=/nix
Type=none
Options=bind
TimeoutSec=30

[Install]
WantedBy=multi-user.target
"""
_TIMEOUT_S = 45.0


@register
@dataclass(frozen=True)
class MountNix(Action[Gap]):
    """Bind the node's folder `source` to /nix, now and at every boot before `containerd_unit` and the kubelet."""

    kind: ClassVar[str] = "mount-nix"

    source: str
    containerd_unit: str

    def preview_revert(self, host: Host, before: Before, *, purge: bool) -> tuple[str, Kept | None]:
        return "", None if purge or not host.files.lexists(_FILE) else Kept(
            f"only --purge removes {_FILE}", waits=False
        )

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        return (Owned(_FILE), Owned(_LINK))

    def describe(self) -> str:
        return f"mount {self.source} at {NIX}, now and at every boot"

    def inspect(self, host: Host) -> Gap | None:
        if _without_marks(host.files.read_optional(_FILE)) != _without_marks(self._unit(made=False)):
            return Gap(f"{_FILE} is not there or not what it was", (_FILE,))
        if host.files.readlink(_LINK) != f"../{UNIT}":
            return Gap(f"{_LINK} does not enable the mount", (_LINK,))
        if host.systemd.status(UNIT).active != "active":
            return Gap(f"{self.source} is not mounted at {NIX}")
        return None

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        """See Action.

        Raises:
            OutsideError: systemd does not mount it, or the mount does not reach this pod.
        """
        made = host.files.mkdir(NIX) or _MADE.encode() in (host.files.read_optional(_FILE) or b"")
        host.files.write_atomic(_FILE, self._unit(made=made), 0o644)
        host.files.symlink_atomic(_LINK, f"../{UNIT}")
        host.systemd.reload()
        host.systemd.start(UNIT, timeout=_TIMEOUT_S)
        if not os.path.samefile(host.files.real(NIX), host.files.real(self.source)):
            raise OutsideError(
                f"systemd mounted {self.source} at {NIX}, but the mount is not seen here.",
                remedy="In a pod, mount the host's / with mountPropagation: HostToContainer.",
            )

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> Kept | None:
        """Unmount it and remove the unit on a purge; a plain uninstall keeps the store where it is."""
        unit = host.files.read_optional(_FILE) or b""
        if not purge or (unit and _MARK.encode() not in unit):
            return None
        if in_use := folder_in_use(host, NIX):
            return Kept(in_use)
        host.systemd.stop(UNIT, timeout=_TIMEOUT_S)
        if _MADE.encode() in unit and not host.files.listdir(NIX):
            host.files.remove(NIX)
        host.files.remove(_LINK)
        host.files.remove(_FILE)
        host.systemd.reload()
        return None

    def _unit(self, *, made: bool) -> bytes:
        marks = f"{_MARK}\n{_MADE}" if made else _MARK
        units = dict.fromkeys(("containerd.service", self.containerd_unit))
        return _TEXT.format(mark=marks, source=self.source, units=" ".join(units)).encode()


def mounted_folder(host: Host) -> str | None:
    """What an earlier install bound to /nix; None where it did not."""
    unit = (host.files.read_optional(_FILE) or b"").decode(errors="replace")
    match = re.search(r"^What=(.+)$", unit, re.MULTILINE)
    return match[1] if match and _MARK in unit else None


def require_usable(host: Host, source: str) -> None:
    """Check that `source` can be bound to /nix.

    Raises:
        RefusedError: it cannot, or that would hide what is there.
    """
    former = mounted_folder(host)
    if not re.fullmatch(r"(/[\w.@:+-]+)+", source) or ".." in source.split("/") or source == NIX:
        raise RefusedError(f"{source} is no folder that can be mounted at {NIX}.", remedy="Name an absolute path.")
    if not host.files.is_dir(posixpath.dirname(source)):
        raise RefusedError(f"{posixpath.dirname(source)} is not there.", remedy="Create it, or mount the disk there.")
    if host.files.real(source) != host.files.real(source, follow=False):
        raise RefusedError(f"{source} leads over a symlink.", remedy=f"Name {_as_node(host, source)} instead.")
    if former is not None:
        if former != source:
            raise RefusedError(
                f"{former} is mounted at {NIX} already.",
                remedy="Uninstall with --purge first, or install without --nix-dir.",
            )
        return
    if host.files.lexists(_FILE):
        raise RefusedError(
            f"{_FILE} is there and not flox-node's.", remedy="Install without --nix-dir: what it mounts is used."
        )
    if host.files.listdir(NIX):
        raise RefusedError(
            f"{NIX} is there and not empty; a mount would hide it.",
            remedy=f"Install without --nix-dir, or move {NIX} to {source} and mount it there yourself.",
        )


def _as_node(host: Host, path: str) -> str:
    return f"/{host.files.real(path).relative_to(host.files.root)}"


def _without_marks(unit: bytes | None) -> list[bytes] | None:
    return None if unit is None else [line for line in unit.splitlines() if not line.startswith(b"#")]
