"""The handler in containerd's configuration, and the restart that makes it live.

File and restart are one action, because neither is of use without the other and because they are undone together: first
the old bytes, then the restart. The node's containerd proves the candidate before it is written, and the CRI itself is
asked afterwards; when it does not answer as it must, the old bytes come back by themselves.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flox_node.actions.base import Before, Missing, Progress, register
from flox_node.containerd import daemon
from flox_node.containerd.cri import CriStatus
from flox_node.containerd.editor import Handler, remove
from flox_node.containerd.editor import register as register_in
from flox_node.containerd.version import ContainerdVersion
from flox_node.errors import FloxNodeError, OutsideError, RefusedError, RolledBackError
from flox_node.host import Host

RESTART_DEADLINE_S = 60.0
_PROOF_TIMEOUT_S = 30.0


@register
@dataclass(frozen=True)
class RegisterHandler:
    """Put the handler's table into `file` and have the containerd behind `socket` serve it."""

    kind: ClassVar[str] = "register-handler"

    file: str
    socket: str
    handler: str
    binary_name: str

    @property
    def key(self) -> str:
        """See Action."""
        return f"{self.kind}:{self.file}"

    @property
    def _candidate_file(self) -> str:
        # In the same folder, so that relative imports lead where they will; not *.toml, so that no glob takes it in.
        return f"{self.file}.flox-node.candidate"

    def describe(self) -> str:
        """See Action."""
        return f"register the handler {self.handler} in {self.file} and restart containerd"

    def inspect(self, host: Host) -> Missing | None:
        """See Action: the file holds the table, and the running daemon serves it."""
        status = daemon.cri(host, self.socket).status()
        if self._candidate(host, status) != host.files.read_optional(self.file):
            return Missing(f"{self.file} does not register the handler {self.handler}")
        if not self._is_live(status):
            return Missing(f"the running containerd does not serve the handler {self.handler}")
        return None

    def preview(self, host: Host) -> str:
        """See Action."""
        old = host.files.read_optional(self.file) or b""
        new = self._candidate(host, daemon.cri(host, self.socket).status())
        lines = difflib.unified_diff(
            old.decode(errors="replace").splitlines(keepends=True),
            new.decode(errors="replace").splitlines(keepends=True),
            fromfile=self.file,
            tofile=self.file,
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def capture(self, host: Host) -> Before | None:
        """The exact old bytes, and ours to come. None when the table is there already: then nothing older is left."""
        old = host.files.read_optional(self.file)
        new = self._candidate(host, daemon.cri(host, self.socket).status())
        if old == new:
            return None
        return {
            "bytes": None if old is None else base64.b64encode(old).decode(),
            "written_sha256": hashlib.sha256(new).hexdigest(),
        }

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action.

        Raises:
            RefusedError: the configuration must not be edited, or the node's own containerd refuses the candidate.
            RolledBackError: containerd did not come back with the handler; the old bytes are live again.
        """
        found = daemon.find(host, self.socket)
        before = daemon.cri(host, self.socket).status()
        old = host.files.read_optional(self.file)
        new = self._candidate(host, before)
        if new != old:
            self._prove(host, found, new)
            host.files.write_atomic(self.file, new, expected=old)
            progress("written")
        try:
            after = _restart(host, found)
            progress("restarted")
            self._verify(before, after)
        except FloxNodeError as error:
            self._roll_back(host, found, old, error)

    def revert(self, host: Host, before: Before, *, purge: bool) -> None:
        """The old bytes where nobody else wrote since, else our table removed; then a restart, and the CRI is asked.

        Raises:
            OutsideError: containerd does not come back.
        """
        host.files.discard_leftover(self.file)
        host.files.remove(self._candidate_file)
        found = daemon.find(host, self.socket)
        client = daemon.cri(host, self.socket)
        status = client.wait(RESTART_DEADLINE_S)
        current = host.files.read_optional(self.file)
        if current is not None:
            self._write_back(host, current, self._without(status, current, before))
        if self.handler not in status.handlers:
            return
        after = _restart(host, found)
        if self.handler in after.handlers:
            raise OutsideError(
                f"containerd still serves the handler {self.handler} after its removal from {self.file}.",
                remedy=f"Look for another file that registers it: `grep -rn {self.handler} /etc/containerd`.",
            )
        _require_former(status, after, but=self.handler)

    def _candidate(self, host: Host, status: CriStatus) -> bytes:
        source = host.files.read_optional(self.file) or b""
        return register_in(source, self._handler(), ContainerdVersion.parse(status.version)).result

    def _handler(self) -> Handler:
        return Handler(name=self.handler, binary_name=self.binary_name)

    def _is_live(self, status: CriStatus) -> bool:
        live = status.handlers.get(self.handler)
        return live is not None and live.binary_name == self.binary_name

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
                f"The node's containerd refuses {self.file} with the handler in it: {_last_line(dump.stderr)}",
                remedy="Nothing was written. Run `flox-node containerd explain` to see what is wrong with the file.",
            )

    def _verify(self, before: CriStatus, after: CriStatus) -> None:
        if not self._is_live(after):
            raise OutsideError(f"containerd restarted, but does not serve the handler {self.handler}.")
        if after.handlers[self.handler].features_known is False and _default_features_known(after):
            raise OutsideError(f"containerd could not ask {self.binary_name} for its features: the shim does not run.")
        _require_former(before, after)

    def _roll_back(self, host: Host, found: daemon.Daemon, old: bytes | None, error: FloxNodeError) -> None:
        if old is None:
            host.files.remove(self.file)
        else:
            host.files.write_atomic(self.file, old)
        try:
            _restart(host, found)
        except FloxNodeError as second:
            raise OutsideError(
                f"{error.cause} Its old configuration is back in {self.file}, but: {second.cause}",
                remedy=f"See `journalctl -u {found.unit}` on the node.",
            ) from error
        raise RolledBackError(f"{error.cause} The old configuration is live again.") from error

    def _without(self, status: CriStatus, current: bytes, before: Before) -> bytes | None:
        if before and hashlib.sha256(current).hexdigest() == before["written_sha256"]:
            return None if before["bytes"] is None else base64.b64decode(before["bytes"])
        return remove(current, self._handler(), ContainerdVersion.parse(status.version)).result

    def _write_back(self, host: Host, current: bytes, wanted: bytes | None) -> None:
        if wanted is None:
            host.files.remove(self.file)
        elif wanted != current:
            host.files.write_atomic(self.file, wanted, expected=current)


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
