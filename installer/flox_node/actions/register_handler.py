"""The handler in containerd's configuration, and the restart that makes it live.

Files and restart are one action, because neither is of use without the other and because they are undone together. The
node's own containerd proves the candidate before anything is written (`containerd.proof`), the change undoes itself
unless it is confirmed (`containerd.commit`), and it is confirmed only when the CRI itself says what it must.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flox_node.actions.base import Before, Missing, Progress, register
from flox_node.actions.install_units import put_script
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.registration import Registration, from_json
from flox_node.containerd.config.registration.nodeadm import FRAGMENTS
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live import daemon, nodeadm_check, proof, restart
from flox_node.containerd.live.change import Change, carry_out, missing_folders, write, write_all
from flox_node.containerd.live.cri import CriStatus
from flox_node.errors import OutsideError
from flox_node.host import Host
from flox_node.host.files import ConcurrentWriteError

DEADLINE_S = 60.0
RESTARTS_PER_HOUR = 6


@register
@dataclass(frozen=True)
class RegisterHandler:
    """Put the handler's table where it belongs and have the containerd behind `socket` serve it.

    `registration` says which files that are (see `containerd.config.registration`), in its JSON form. A restart that
    is not confirmed within `deadline_s` seconds is undone; a server of k3s restarts a control plane and needs more.
    """

    kind: ClassVar[str] = "register-handler"

    registration: Mapping[str, Any]
    socket: str
    handler: str
    binary_name: str
    adopt: bool = False
    deadline_s: float = DEADLINE_S
    restarts_per_hour: int = field(default=RESTARTS_PER_HOUR, metadata={"recorded": False}, compare=False)

    @property
    def key(self) -> str:
        """See Action."""
        return f"{self.kind}:{self._config}"

    @property
    def _registration(self) -> Registration:
        return from_json(self.registration)

    @property
    def _config(self) -> str:
        return self._registration.config

    def describe(self) -> str:
        """See Action."""
        return f"register the handler {self.handler} with the containerd of {self._config} and restart it"

    def preflight(self, host: Host) -> None:
        """See Guarded: where a restart is needed, it must be one that is safe here."""
        if self.inspect(host) is not None:
            found = daemon.find(host, self.socket)
            restart.require_safe(host, found, per_hour=self.restarts_per_hour)

    def inspect(self, host: Host) -> Missing | None:
        """See Action: the files hold the table, and the running daemon serves it."""
        status = daemon.cri(host, self.socket).status()
        edits = self._edits(host, status)
        if edits:
            return Missing(f"{edits[0].path} does not register the handler {self.handler}")
        if not self._is_live(status):
            return Missing(f"the running containerd does not serve the handler {self.handler}")
        return None

    def preview(self, host: Host) -> str:
        """See Action."""
        return "".join(_diff(edit) for edit in self._edits(host, daemon.cri(host, self.socket).status()))

    def capture(self, host: Host) -> Before | None:
        """The exact old bytes of each file, and what ours will be; None when all is there already.

        Removal does not depend on them (our table carries marks): they make it exact where nobody else wrote since.
        """
        edits = self._edits(host, daemon.cri(host, self.socket).status())
        if not edits:
            return None
        return {
            "files": {edit.path: _remembered(edit) for edit in edits},
            "folders": missing_folders(host, edits),
        }

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action.

        Raises:
            RefusedError: the configuration must not be edited, or the node's own containerd refuses the candidate.
            RestartBudgetError: containerd was restarted too often.
            ConcurrentWriteError: something else writes these files, twice.
            RolledBackError: containerd did not come back with the handler; the old bytes are live again.
        """
        status = daemon.cri(host, self.socket).status()
        edits = self._edits(host, status)
        if self._is_live(status) and not any(edit.live for edit in edits):
            # Only what the platform reads at its next start is missing: what runs is as it should be.
            nodeadm_check.require_accepted(host, edits, FRAGMENTS)
            write_all(host, edits)
            return
        restart.spend(host, per_hour=self.restarts_per_hour)
        try:
            self._register(host, progress)
        except ConcurrentWriteError:
            self._register(host, progress)

    def revert(self, host: Host, before: Before, *, purge: bool) -> None:
        """The old bytes where nobody else wrote since, else our table removed; then a restart, and the CRI is asked.

        Raises:
            RolledBackError: containerd does not come back without the handler; it is registered again.
            OutsideError: containerd does not come back.
        """
        found = daemon.find(host, self.socket)
        status = daemon.cri(host, self.socket).wait(self.deadline_s)
        remembered: Mapping[str, Any] = before.get("files", {})
        for path in {self._config, *remembered}:
            host.files.discard_leftover(path)
        edits = [
            Edit(edit.path, edit.before, _exact(edit, remembered))
            for edit in self._registration.withdrawals(host.files, _version(status), self._handler())
        ]
        if self._is_live(status):
            restart.require_safe(host, found)
            put_script(host)
            change = Change(edits, self._judge_removal, dict, self.deadline_s)
            carry_out(host, found, status, change, lambda _: None)
        else:
            for edit in edits:
                write(host, edit.path, edit.after, expected=edit.before)
        for folder in before.get("folders", ()):
            if not host.files.listdir(folder):
                host.files.remove(folder)

    def _register(self, host: Host, progress: Progress) -> None:
        found = daemon.find(host, self.socket)
        before = daemon.cri(host, self.socket).status()
        edits = self._edits(host, before)
        proof.try_shim(host, self.binary_name)
        if edits:
            nodeadm_check.require_accepted(host, edits, FRAGMENTS)
            unproven = proof.prove(host, found, _version(before), edits, self._handler(), self._config)
            progress(f"not proven: {unproven}" if unproven else "proven")
        change = Change(edits, self._judge, lambda: self._without_ours(host, before), self.deadline_s)
        carry_out(host, found, before, change, progress)

    def _edits(self, host: Host, status: CriStatus) -> tuple[Edit, ...]:
        """The files that still have to be written."""
        return self._registration.edits(host.files, _version(status), self._handler(), adopt=self.adopt)

    def _without_ours(self, host: Host, status: CriStatus) -> dict[str, bytes | None]:
        edits = self._registration.withdrawals(host.files, _version(status), self._handler())
        return {edit.path: edit.after for edit in edits}

    def _handler(self) -> Handler:
        return Handler(name=self.handler, binary_name=self.binary_name)

    def _is_live(self, status: CriStatus) -> bool:
        live = status.handlers.get(self.handler)
        return live is not None and live.binary_name == self.binary_name

    def _judge(self, before: CriStatus, after: CriStatus) -> None:
        if not self._is_live(after):
            raise OutsideError(f"containerd restarted, but does not serve the handler {self.handler}.")
        if after.handlers[self.handler].features_known is False and _default_features_known(after):
            raise OutsideError(f"containerd could not ask {self.binary_name} for its features: the shim does not run.")
        restart.require_former(before, after, but=self.handler)

    def _judge_removal(self, before: CriStatus, after: CriStatus) -> None:
        if self._is_live(after):
            raise OutsideError(
                f"containerd still serves the handler {self.handler} after its removal from {self._config}.",
                remedy="`flox-node containerd explain` shows which file registers it.",
            )
        restart.require_former(before, after, but=self.handler)


def _remembered(edit: Edit) -> dict[str, Any]:
    return {
        "bytes": None if edit.before is None else base64.b64encode(edit.before).decode(),
        "written_sha256": hashlib.sha256(edit.after or b"").hexdigest(),
    }


def _exact(edit: Edit, remembered: Mapping[str, Any]) -> bytes | None:
    """The bytes from before us, exact to the last one if the file still is as we wrote it."""
    known = remembered.get(edit.path)
    if known is None or hashlib.sha256(edit.before or b"").hexdigest() != known["written_sha256"]:
        return edit.after
    return None if known["bytes"] is None else base64.b64decode(known["bytes"])


def _diff(edit: Edit) -> str:
    old, new = ((data or b"").decode(errors="replace").splitlines(keepends=True) for data in (edit.before, edit.after))
    lines = difflib.unified_diff(old, new, fromfile=edit.path, tofile=edit.path)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _default_features_known(status: CriStatus) -> bool:
    default = status.handlers.get(status.default_handler)
    return default is not None and bool(default.features_known)


def _version(status: CriStatus) -> ContainerdVersion:
    return ContainerdVersion.parse(status.version)
