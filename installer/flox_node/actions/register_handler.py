"""The handler in containerd's configuration, and the restart that makes it live.

Files and restart are one action, because neither is of use without the other and because they are undone together. The
node's own containerd proves the candidate before anything is written (`containerd.proof`), the change undoes itself
unless it is confirmed (`containerd.commit`), and it is confirmed only when the CRI itself says what it must.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from flox_node.actions.base import Action, Before, Gap, Kept, Owned, Progress, register
from flox_node.actions.install_units import put_script
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler, strip
from flox_node.containerd.config.effective import Effective, MapReader, Reader, load
from flox_node.containerd.config.ours import shaped_by_us
from flox_node.containerd.config.registration import Registration, from_json, to_json
from flox_node.containerd.config.registration.nodeadm import FRAGMENTS
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live import daemon, nodeadm_check, pending, proof, restart, sharing
from flox_node.containerd.live.change import Change, make_live, missing_folders, write_all
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Running
from flox_node.errors import FloxNodeError, OutsideError, RefusedError
from flox_node.host import Host
from flox_node.host.files import ConcurrentWriteError

DEADLINE_S = 60.0
RESTARTS_PER_HOUR = 6
_SEARCH_PATH = ("/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/bin")

Judge = Callable[[CriStatus, CriStatus], None]


@dataclass(frozen=True)
class HandlerGap(Gap):
    """The containerd that was looked at, and the edits that its files need; () where only the daemon lacks it."""

    running: Running = field(kw_only=True)
    edits: tuple[Edit, ...] = ()


@register
@dataclass(frozen=True)
class RegisterHandler(Action[HandlerGap]):
    """Put the handler's table where it belongs and have the containerd behind `socket` serve it.

    `registration` says which files that are (see `containerd.config.registration`). A restart that is not confirmed
    within `deadline_s` seconds is undone; a server of k3s restarts a control plane and needs more. `unit`, `program`,
    `version` are of the containerd that it was made for: it may be another one later, or not run at all. `running` is
    what the planner saw of it a moment ago.
    """

    kind: ClassVar[str] = "register-handler"

    registration: Registration = field(metadata={"to_json": to_json, "from_json": from_json})
    socket: str
    handler: str
    binary_name: str
    adopt: bool = False
    deadline_s: float = DEADLINE_S
    unit: str = field(default="containerd.service", compare=False)
    program: str = field(default="", compare=False)
    version: str = field(default="", compare=False)
    restarts_per_hour: int = field(default=RESTARTS_PER_HOUR, metadata={"recorded": False}, compare=False)
    running: Running | None = field(default=None, metadata={"recorded": False}, compare=False)

    @property
    def key(self) -> str:
        return self.kind  # a node has one: where its containerd is started with another file, it is still this one

    def describe(self) -> str:
        return f"register the handler {self.handler} with the containerd of {self.registration.config} and restart it"

    def inspect(self, host: Host) -> HandlerGap | None:
        """The files hold the table, and the running daemon serves it."""
        return self._compare(host, self.running or daemon.look(host, self.socket))

    def _compare(self, host: Host, running: Running) -> HandlerGap | None:
        edits = self._edits(host, running)
        paths = tuple(edit.path for edit in edits)
        if edits:
            shared = [str(each) for each in sharing.find(host, running, paths)]
            reason = "; ".join([f"{paths[0]} does not register the handler {self.handler}", *shared])
            return HandlerGap(reason, paths, running=running, edits=edits)
        if not self._is_live(running.status):
            reason = f"the running containerd does not serve the handler {self.handler}"
            return HandlerGap(reason, running=running)
        return None

    def preflight(self, host: Host, gap: HandlerGap) -> None:
        """Where a restart is needed, it must be one that is safe here, and make nothing live but our edit."""
        self._require_nothing_pending(host, gap.running)
        restart.require_safe(host, gap.running.daemon, per_hour=self.restarts_per_hour)

    def preview(self, gap: HandlerGap) -> str:
        return "".join(_diff(edit) for edit in gap.edits)

    def capture(self, host: Host, gap: HandlerGap | None, known: Before | None) -> Before | None:
        """What each file is without us, and what ours will be; what was captured when we came stays what it is.

        Removal does not depend on it (our table carries marks): it makes it exact where nobody else wrote since.
        """
        known_files: Mapping[str, Any] = (known or {}).get("files", {})
        if gap is None and known_files:
            return None
        running = gap.running if gap is not None else self.running or daemon.look(host, self.socket)
        withdrawn = {edit.path: edit for edit in self._withdrawals(host.files, running.version)}
        edits = gap.edits if gap is not None else [Edit(e.path, e.after, e.before) for e in withdrawn.values()]
        files = dict(known_files)
        for edit in edits:
            now = host.files.read_optional(edit.path)
            if edit.path in known_files and _digest(now) == known_files[edit.path]["written_sha256"]:
                old = _bytes_before(known_files[edit.path])  # as we wrote it: what we found then is what it was
            else:
                old = withdrawn[edit.path].after if edit.path in withdrawn else now
            files[edit.path] = _remembered(old, edit.after)
        folders = {*(known or {}).get("folders", ()), *missing_folders(host, edits)}
        return {"files": files, "folders": sorted(folders, reverse=True)}

    def execute(self, host: Host, gap: HandlerGap, progress: Progress) -> None:
        """Write and restart; where what runs is as it should be, only what the platform reads at its next start.

        Raises:
            RefusedError: the configuration must not be edited, or the node's own containerd refuses the candidate.
            RestartBudgetError: containerd was restarted too often.
            ConcurrentWriteError: something else writes these files, twice.
            RolledBackError: containerd did not come back with the handler; the old bytes are live again.
        """
        if self._is_live(gap.running.status) and not any(edit.live for edit in gap.edits):
            nodeadm_check.require_accepted(host, gap.edits, FRAGMENTS)
            write_all(host, gap.edits)
            return
        restart.spend(host, per_hour=self.restarts_per_hour)
        try:
            self._register(host, daemon.look(host, self.socket), gap.edits, progress)
        except ConcurrentWriteError:
            running = daemon.look(host, self.socket)
            self._register(host, running, self._edits(host, running), progress)

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> None:
        """The old bytes where nobody else wrote since, else our table removed; then a restart, and the CRI is asked.

        A containerd that does not answer now is not asked before, only afterwards: we may be the reason.

        Raises:
            RefusedError: it is the default runtime, or a restart would not be safe here.
            RolledBackError: containerd does not come back without the handler; it is registered again.
            OutsideError: containerd does not come back, or its version cannot be found out.
        """
        running = self._answering(host)
        self._require_not_default(host, running)
        if running is None:
            self._revert_unanswered(host, before, progress)
            return
        edits = self._withdrawn_exactly(host, running.version, before)
        if self._is_live(running.status):
            self._require_nothing_pending(host, running)
            restart.require_safe(host, running.daemon)
            put_script(host)
            judge = self._lenient(host, running, edits, self._judge_removal)
            change = Change(edits, judge, dict, self.deadline_s)
            make_live(host, running.daemon, running.status, change, progress)
        else:
            write_all(host, edits)
        _remove_empty(host, before.get("folders", ()))

    def preview_revert(self, host: Host, before: Before, *, purge: bool) -> tuple[str, Kept | None]:
        running = self._answering(host)
        version = running.version if running is not None else self.identify(host)[1]
        self._require_not_default(host, running)
        if running is not None and self._is_live(running.status):
            self._require_nothing_pending(host, running)
            restart.require_safe(host, running.daemon)
        return "".join(map(_diff, self._withdrawn_exactly(host, version, before))), None

    def _revert_unanswered(self, host: Host, before: Before, progress: Progress) -> None:
        """Nothing is armed: what there is to go back to does not work."""
        unit, version = self.identify(host)
        edits = self._withdrawn_exactly(host, version, before)
        write_all(host, edits)
        _remove_empty(host, before.get("folders", ()))
        if not edits:
            return  # it is not down because of us
        progress(f"taken out of {', '.join(edit.path for edit in edits)}")
        try:
            status = restart.start_again(host, unit, self.socket, self.deadline_s)
        except FloxNodeError as error:
            progress(f"containerd {version} does not answer without it either: {error.cause}")
            return
        if self._is_live(status):
            raise OutsideError(f"containerd still serves the handler {self.handler} after its removal.")
        progress("containerd answers again")

    def _answering(self, host: Host) -> Running | None:
        """The containerd, if it answers; one that may still be starting is waited for, one that cannot start is not."""
        try:
            return daemon.look(host, self.socket)
        except FloxNodeError:
            _, version = self.identify(host)
            if load(self.registration.config, host.files, version).state != "ok":
                return None
        try:
            return daemon.look(host, self.socket, patience_s=self.deadline_s)
        except FloxNodeError:
            return None

    def identify(self, host: Host) -> tuple[str, ContainerdVersion]:
        """The unit of the containerd behind the socket, and its version, from its program: it need not answer.

        Raises:
            OutsideError: no program tells its version.
        """
        process = host.processes.socket_owner(self.socket)
        program = daemon.program_of(host, process) if process else None
        unit = (process.unit if process else None) or self.unit
        for candidate in (program, self.program, host.processes.which("containerd", _SEARCH_PATH)):
            if candidate:
                with contextlib.suppress(OutsideError):
                    return unit, daemon.version_of(host, candidate)
        if self.version:
            return unit, ContainerdVersion.parse(self.version)
        raise OutsideError("No containerd on this node tells its version.")

    def without_us(self, host: Host, version: ContainerdVersion) -> MapReader:
        """The node's files as they would be without the handler."""
        return MapReader({edit.path: edit.after for edit in self._withdrawals(host.files, version)}, host.files)

    def _next_start(self, reader: Reader, version: ContainerdVersion) -> Effective:
        """What a restart makes of the platform's inputs without us."""
        return pending.next_start(reader, version, self.registration, self._handler())

    def _require_nothing_pending(self, host: Host, running: Running) -> None:
        found = pending.find(host, running, self.registration, self._handler())
        if found:
            raise pending.refusal(found, running.daemon.unit)

    def _require_not_default(self, host: Host, running: Running | None) -> None:
        version = running.version if running is not None else self.identify(host)[1]
        found = load(self.registration.config, host.files, version)
        if found.cri is not None and found.cri.default_runtime == self.handler:
            raise RefusedError(
                f'"{self.handler}" is the default runtime of {found.root.path}: without it the CRI plugin would not '
                "load.",
                remedy="Set default_runtime_name to another runtime and restart containerd first.",
            )

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        """Files of others with our table in them, and containerd's root file, which leads to it."""
        remembered: Mapping[str, Any] = before.get("files", {})
        yield from (Owned(path, True, _bytes_before(known)) for path, known in remembered.items())
        if self.registration.config not in remembered:
            yield Owned(self.registration.config, True)

    def _register(self, host: Host, running: Running, edits: tuple[Edit, ...], progress: Progress) -> None:
        proof.try_shim(host, self.binary_name)
        if edits:
            nodeadm_check.require_accepted(host, edits, FRAGMENTS)
            config = self.registration.config
            unproven = proof.prove(host, running.daemon, running.version, edits, self._handler(), config)
            progress(f"not proven: {unproven}" if unproven else "proven")
        judge = self._lenient(host, running, edits, self._judge)
        change = Change(edits, judge, lambda: self._without_ours(host, running), self.deadline_s)
        make_live(host, running.daemon, running.status, change, progress)

    def _edits(self, host: Host, running: Running) -> tuple[Edit, ...]:
        """The files that still have to be written."""
        return self.registration.edits(host.files, running.version, self._handler(), adopt=self.adopt)

    def _withdrawals(self, reader: Reader, version: ContainerdVersion) -> tuple[Edit, ...]:
        return self.registration.withdrawals(reader, version, self._handler())

    def _withdrawn_exactly(self, host: Host, version: ContainerdVersion, before: Before) -> list[Edit]:
        """The edits that take us out: to the last byte of what was there where the file still is as we wrote it."""
        remembered: Mapping[str, Any] = before.get("files", {})
        edits = {edit.path: edit for edit in self._withdrawals(host.files, version)}
        for path, known in remembered.items():
            now = host.files.read_optional(path)
            if now is None or (path in edits and not edits[path].changed):
                continue
            if _digest(now) == known["written_sha256"]:
                edits[path] = Edit(path, now, _bytes_before(known))
            elif path not in edits and path.endswith(".toml"):  # of a configuration that containerd had once
                with contextlib.suppress(RefusedError):
                    edits[path] = Edit(path, now, strip(now, self._handler(), version).result)
        # An older release remembered, at a repair, the file with our table in it.
        left = MapReader({edit.path: edit.after for edit in edits.values()}, host.files)
        for edit in self._withdrawals(left, version):
            now = edits[edit.path].before if edit.path in edits else edit.before
            edits[edit.path] = Edit(edit.path, now, edit.after)
        return [edit for edit in edits.values() if edit.changed]

    def _without_ours(self, host: Host, running: Running) -> dict[str, bytes | None]:
        return {edit.path: edit.after for edit in self._withdrawals(host.files, running.version)}

    def _handler(self) -> Handler:
        return Handler(name=self.handler, binary_name=self.binary_name)

    def _is_live(self, status: CriStatus) -> bool:
        live = status.handlers.get(self.handler)
        return live is not None and live.binary_name == self.binary_name

    def _lenient(self, host: Host, running: Running, edits: Iterable[Edit], judge: Judge) -> Judge:
        """The same judge, who takes it for no loss that a handler becomes what it is without us.

        A neighbour's or an administrator's new files beside what we wrote for the old ones can have shaped it.
        """
        files = MapReader({edit.path: edit.before for edit in edits}, host.files)  # as they were before

        def judged(before: CriStatus, after: CriStatus) -> None:
            with contextlib.suppress(OutsideError):
                return judge(before, after)
            here = load(self.registration.config, files, running.version)
            shaped = shaped_by_us(here, self._next_start(files, running.version), self._handler())
            kept = {name: handler for name, handler in before.handlers.items() if name not in shaped}
            return judge(replace(before, handlers=kept), after)

        return judged

    def _judge(self, before: CriStatus, after: CriStatus) -> None:
        if not self._is_live(after):
            raise OutsideError(f"containerd restarted, but does not serve the handler {self.handler}.")
        if after.handlers[self.handler].features_known is False and _default_features_known(after):
            raise OutsideError(f"containerd could not ask {self.binary_name} for its features: the shim does not run.")
        restart.require_former(before, after, but=self.handler)

    def _judge_removal(self, before: CriStatus, after: CriStatus) -> None:
        if self._is_live(after):
            config = self.registration.config
            raise OutsideError(
                f"containerd still serves the handler {self.handler} after its removal from {config}.",
                remedy="`flox-node containerd explain` shows which file registers it.",
            )
        restart.require_former(before, after, but=self.handler)


def _remove_empty(host: Host, folders: Iterable[str]) -> None:
    for folder in folders:
        if not host.files.listdir(folder):
            host.files.remove(folder)


def _remembered(old: bytes | None, written: bytes | None) -> dict[str, Any]:
    return {
        "bytes": None if old is None else base64.b64encode(old).decode(),
        "written_sha256": _digest(written),
    }


def _bytes_before(known: Mapping[str, Any]) -> bytes | None:
    return None if known["bytes"] is None else base64.b64decode(known["bytes"])


def _digest(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def _diff(edit: Edit) -> str:
    old, new = ((data or b"").decode(errors="replace").splitlines(keepends=True) for data in (edit.before, edit.after))
    lines = difflib.unified_diff(old, new, fromfile=edit.path, tofile=edit.path)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _default_features_known(status: CriStatus) -> bool:
    default = status.handlers.get(status.default_handler)
    return default is not None and bool(default.features_known)
