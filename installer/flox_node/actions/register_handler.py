"""The handler in containerd's configuration, and the restart that makes it live.

File and restart are one action, because neither is of use without the other and because they are undone together: first
the old bytes, then the restart. The node's containerd proves the candidate before it is written, and the CRI itself is
asked afterwards; when it does not answer as it must, the old bytes come back by themselves.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flox_node.actions.base import Before, Missing, Progress, register
from flox_node.containerd import daemon
from flox_node.containerd.cri import CriStatus
from flox_node.containerd.edit import Edit
from flox_node.containerd.editor import Handler
from flox_node.containerd.registration import Registration, from_json
from flox_node.containerd.version import ContainerdVersion
from flox_node.errors import FloxNodeError, OutsideError, RefusedError, RolledBackError
from flox_node.host import Host
from flox_node.host.files import ConcurrentWriteError

RESTART_DEADLINE_S = 60.0
_PROOF_TIMEOUT_S = 30.0


@register
@dataclass(frozen=True)
class RegisterHandler:
    """Put the handler's table where it belongs and have the containerd behind `socket` serve it.

    `registration` says which files that are (see `flox_node.containerd.registration`), in its JSON form.
    """

    kind: ClassVar[str] = "register-handler"

    registration: Mapping[str, Any]
    socket: str
    handler: str
    binary_name: str
    adopt: bool = False

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

    @property
    def _candidate_file(self) -> str:
        # In the same folder, so that relative imports lead where they will; not *.toml, so that no glob takes it in.
        return f"{self._config}.flox-node.candidate"

    def describe(self) -> str:
        """See Action."""
        return f"register the handler {self.handler} with the containerd of {self._config} and restart it"

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
        folders = {posixpath.dirname(edit.path) for edit in edits}
        return {
            "files": {edit.path: _remembered(edit) for edit in edits},
            "folders": sorted(folder for folder in folders if not host.files.is_dir(folder)),
        }

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action.

        Raises:
            RefusedError: the configuration must not be edited, or the node's own containerd refuses the candidate.
            ConcurrentWriteError: something else writes these files, twice.
            RolledBackError: containerd did not come back with the handler; the old bytes are live again.
        """
        found = daemon.find(host, self.socket)
        before = daemon.cri(host, self.socket).status()
        written: dict[str, bytes | None] = {}
        try:
            self._write(host, found, before, written)
        except ConcurrentWriteError:
            self._write(host, found, before, written)
        if written:
            progress("written")
        try:
            after = _restart(host, found)
            progress("restarted")
            self._verify(before, after)
        except FloxNodeError as error:
            self._roll_back(host, found, written, error)

    def revert(self, host: Host, before: Before, *, purge: bool) -> None:
        """The old bytes where nobody else wrote since, else our table removed; then a restart, and the CRI is asked.

        Raises:
            OutsideError: containerd does not come back.
        """
        found = daemon.find(host, self.socket)
        status = daemon.cri(host, self.socket).wait(RESTART_DEADLINE_S)
        host.files.remove(self._candidate_file)
        remembered: Mapping[str, Any] = before.get("files", {})
        for path in {self._config, *remembered}:
            host.files.discard_leftover(path)
        version = ContainerdVersion.parse(status.version)
        for edit in self._registration.withdrawals(host.files, version, self._handler()):
            _put(host, edit.path, _exact(edit, remembered), expected=edit.before)
        for folder in before.get("folders", ()):
            if not host.files.listdir(folder):
                host.files.remove(folder)
        if not self._is_live(status):
            return
        after = _restart(host, found)
        if self._is_live(after):
            raise OutsideError(
                f"containerd still serves the handler {self.handler} after its removal from {self._config}.",
                remedy="`flox-node containerd explain` shows which file registers it.",
            )
        _require_former(status, after, but=self.handler)

    def _edits(self, host: Host, status: CriStatus) -> tuple[Edit, ...]:
        """The files that still have to be written."""
        version = ContainerdVersion.parse(status.version)
        return self._registration.edits(host.files, version, self._handler(), adopt=self.adopt)

    def _handler(self) -> Handler:
        return Handler(name=self.handler, binary_name=self.binary_name)

    def _is_live(self, status: CriStatus) -> bool:
        live = status.handlers.get(self.handler)
        return live is not None and live.binary_name == self.binary_name

    def _write(self, host: Host, found: daemon.Daemon, status: CriStatus, written: dict[str, bytes | None]) -> None:
        edits = self._edits(host, status)
        for edit in edits:
            if edit.path == self._config and edit.after is not None:
                self._prove(host, found, edit.after)
        for edit in edits:
            host.files.mkdir(posixpath.dirname(edit.path))
            _put(host, edit.path, edit.after, expected=edit.before)
            written.setdefault(edit.path, edit.before)

    def _prove(self, host: Host, found: daemon.Daemon, candidate: bytes) -> None:
        """Have the node's own containerd read the candidate before it is live."""
        host.files.write_atomic(self._candidate_file, candidate, 0o600)
        try:
            dump = host.processes.run(
                [found.exe, "--config", self._candidate_file, "config", "dump"], timeout=_PROOF_TIMEOUT_S
            )
        finally:
            host.files.remove(self._candidate_file)
        if dump.returncode != 0:
            raise RefusedError(
                f"The node's containerd refuses {self._config} with the handler in it: {_last_line(dump.stderr)}",
                remedy="Nothing was written. Run `flox-node containerd explain` to see what is wrong with the file.",
            )

    def _verify(self, before: CriStatus, after: CriStatus) -> None:
        if not self._is_live(after):
            raise OutsideError(f"containerd restarted, but does not serve the handler {self.handler}.")
        if after.handlers[self.handler].features_known is False and _default_features_known(after):
            raise OutsideError(f"containerd could not ask {self.binary_name} for its features: the shim does not run.")
        _require_former(before, after, but=self.handler)

    def _roll_back(
        self, host: Host, found: daemon.Daemon, written: Mapping[str, bytes | None], error: FloxNodeError
    ) -> None:
        for path, old in written.items():
            _put(host, path, old)
        try:
            _restart(host, found)
        except FloxNodeError as second:
            raise OutsideError(
                f"{error.cause} Its old configuration is back in {self._config}, but: {second.cause}",
                remedy=f"See `journalctl -u {found.unit}` on the node.",
            ) from error
        raise RolledBackError(f"{error.cause} The old configuration is live again.") from error


def _put(host: Host, path: str, data: bytes | None, *, expected: bytes | None = None) -> None:
    if data is None:
        host.files.remove(path)
    else:
        host.files.write_atomic(path, data, expected=expected)


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


def _restart(host: Host, found: daemon.Daemon) -> CriStatus:
    """Restart the daemon's unit, start again what systemd stopped along with it, and wait until the CRI answers."""
    bound = [unit for unit in host.systemd.bound_units(found.unit) if host.systemd.status(unit).active == "active"]
    host.systemd.restart(found.unit, timeout=RESTART_DEADLINE_S)
    status = daemon.cri(host, found.socket).wait(RESTART_DEADLINE_S)
    for unit in bound:
        # EKS' kubelet Requires=containerd: systemd stops it along, and a restart after a failed start leaves it down.
        if host.systemd.status(unit).active != "active":
            host.systemd.start(unit, timeout=RESTART_DEADLINE_S)
    return status


def _require_former(before: CriStatus, after: CriStatus, *, but: str = "") -> None:
    lost = [
        name
        for name, handler in before.handlers.items()
        if name != but and _identity(after.handlers, name) != (handler.runtime_type, dict(handler.options))
    ]
    if lost:
        raise OutsideError(f"containerd restarted, but lost or changed the handler {', '.join(sorted(lost))}.")


def _identity(handlers: Mapping[str, object], name: str) -> tuple[str, dict[str, object]] | None:
    handler = handlers.get(name)
    return None if handler is None else (handler.runtime_type, dict(handler.options))  # type: ignore[attr-defined]


def _default_features_known(status: CriStatus) -> bool:
    default = status.handlers.get(status.default_handler)
    return default is not None and bool(default.features_known)


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
