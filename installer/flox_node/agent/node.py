"""The container `node`: brings the node where the settings want it, notices when it is elsewhere, and says so.

It stays resident and small. Looking and working are processes that end (`children`), and they are the commands that a
person would run. Nothing happens on the node because this pod ends: an uninstall is a mode of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from flox_node import settings
from flox_node.agent import exchange, failures
from flox_node.agent.children import Ended, Run, run
from flox_node.agent.exchange import Event, Granted, NodeState, PodNews
from flox_node.agent.seen import Seen
from flox_node.agent.serve import Health
from flox_node.environments import notices
from flox_node.environments.paths import Paths
from flox_node.errors import UsageError
from flox_node.host.files import HostFiles
from flox_node.host.space import LOW, free_ratios
from flox_node.host.watch import FolderWatch, fingerprint
from flox_node.kube.names import Happening, Phase, Reason

_TICK_S = 10.0  # between two looks at fingerprints: a system call for each of some thirty paths
_SETTLE_S = 1.0  # a writer that we noticed may not be done yet
_REVIEW_S = 3600.0  # a whole look although nothing was noticed
_LOOK_TIMEOUT_S = 120.0
_WORK_TIMEOUT_S = 1800.0
_COLLECT_EVERY_S = 3600.0
_MESSAGE_LIMIT = 1000


@dataclass
class Counters:
    """What this pod has done so far, for the metrics; `phases` are seconds of the last install by kind of action."""

    restarts: int = 0
    rollbacks: int = 0
    repairs: int = 0
    drifts: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    placed_bytes: float = 0.0


class NodeAgent:
    """One node's loop. `converge` is one pass of it, and all that a test needs."""

    def __init__(
        self,
        mode: str,
        *,
        host_root: Path = Path("/host"),
        payload: Path = Path("/payload"),
        settings_folder: Path = settings.FOLDER,
        own: Path = exchange.NODE,
        other: Path = exchange.REPORTER,
        run: Run = run,
    ) -> None:
        self._mode, self._payload, self._settings_folder, self._run = mode, payload, settings_folder, run
        self._root = str(host_root)
        self._files = HostFiles(host_root)
        self._own, self._other = own, other
        self._seen = Seen()
        self._failures = 0
        self._collected_at = -_COLLECT_EVERY_S
        self.counters = Counters()
        self._digest, self._share = "", "1"
        self.state = exchange.read(own, "state.json", NodeState) or NodeState()
        self.state = dataclasses.replace(self.state, reason=Reason.INSTALLING, slot="")  # until it was looked at

    @property
    def grants(self) -> Path:
        """The folder in which the reporter grants slots."""
        return self._other

    @property
    def seen(self) -> Seen:
        """The last look at the node."""
        return self._seen

    def converge(self) -> float:
        """One pass. Returns after how many seconds the next one is due if nothing is noticed before."""
        self._digest = settings.digest(self._settings_folder)
        if self._mode == "uninstall":
            return self._uninstall()
        try:
            self._share = settings.load(self._settings_folder).share
        except UsageError as error:
            return self._failed(Ended(error.exit_code, error.as_dict()))  # until they are others
        return self._install()

    def has_other_settings(self) -> bool:
        """Whether the settings are others than in the last pass."""
        return settings.digest(self._settings_folder) != self._digest

    def changed(self) -> bool:
        """Whether a fingerprint is another one than after the last look, and which paths that were."""
        seen = self._seen.paths.items()
        different = [path for path, before in seen if list(fingerprint(self._files, path)) != before]
        if different:
            say(f"changed: {', '.join(different)}")
        return bool(different)

    def gc_if_full(self) -> None:
        """Start the node's own collection when its store's file system is nearly full (bytes, inodes), once an hour."""
        now = time.monotonic()
        if not self.state.live or now - self._collected_at < _COLLECT_EVERY_S:
            return
        with contextlib.suppress(OSError):
            if min(free_ratios(self._files.real("/nix"))) < LOW:
                self._collected_at = now
                say("The store's file system is nearly full: starting the node's collection.")
                self._run(["flox_node.agent", "gc", self._root], _LOOK_TIMEOUT_S)

    def notice_folders(self) -> list[str]:
        """The folders of our own namespace in which the handler leaves what pods are to be told."""
        folder = Paths(self._root).notices
        return [folder.rpartition("/")[0], folder]

    def pass_notices(self) -> None:
        """Hand what the handler has left for pods to the reporter."""
        exchange.write(self._own, "pods.json", PodNews(tuple(notices.recent(Paths(self._root)))))

    def folders(self) -> list[str]:
        """The folders of our own namespace to watch."""
        return [str(self._files.real(folder)) for folder in self._seen.folders]

    def _install(self) -> float:
        if (error := self._look()) is not None:
            return error
        seen = self._seen
        if not seen.needed:
            return self._converged()
        if seen.installed and not seen.upgrade and not self.state.slot:  # with a slot it was counted before it waited
            self.counters.drifts += 1
        if seen.restart and not self._may_restart(seen):
            return _REVIEW_S  # the grant is noticed
        self._publish(Reason.INSTALLING, f"{seen.reason}.", slot=self.state.slot)
        before = seen.gauges.get("store_bytes", 0.0)
        ended = self._flox_node("install", "--payload", str(self._payload), "--settings", str(self._settings_folder))
        self._count(ended)
        if ended.code:
            return self._failed(ended)
        happening = self._happened(seen)
        if (error := self._look()) is not None:
            return error
        self.counters.placed_bytes = max(0.0, self._seen.gauges.get("store_bytes", 0.0) - before)
        if self._seen.needed:
            return self._failed(Ended(9, {"error": "busy", "cause": f"Changed again at once: {self._seen.reason}."}))
        return self._converged(happening)

    def _uninstall(self) -> float:
        self._publish(Reason.UNINSTALLING, "The node is being put back as it was.")
        ended = self._flox_node("uninstall", *(["--purge"] if settings.wants_purge(self._settings_folder) else []))
        if ended.code:
            return self._failed(ended)
        kept = [step["reason"] for step in ended.body.get("steps", ()) if step["outcome"] == "kept"]
        if kept:
            text = f"Kept until nothing uses it: {'; '.join(dict.fromkeys(kept))}."
            return self._failed(Ended(6, {"error": "in-use", "cause": text}))
        self._seen = Seen()
        event = Happening.UNINSTALLED if ended.body.get("changed") else None
        text = "The node is as it was before flox-node."
        self._publish(Reason.UNINSTALLED, text, happening=event)
        return _REVIEW_S

    def _look(self) -> float | None:
        """Look at the node; the seconds until the next pass where it cannot be told what to do."""
        arguments = ["flox_node.agent", "look", self._root, str(self._payload), str(self._settings_folder)]
        ended = self._run(arguments, _LOOK_TIMEOUT_S)
        if ended.code:
            return self._failed(ended)
        self._seen = Seen.from_json(ended.body)
        if self._seen.error is not None:
            return self._failed(Ended(int(self._seen.error["exit_code"]), self._seen.error))
        return None

    def _may_restart(self, seen: Seen) -> bool:
        """Whether the reporter holds a slot for us; if not, ask for one."""
        granted = exchange.read(self._other, "slot.json", Granted)
        if self.state.slot and granted is not None and granted.slot == self.state.slot:
            return True
        slot = self.state.slot or uuid.uuid4().hex
        self._publish(Reason.WAITING, f"Waiting for a slot to restart containerd: {seen.reason}.", slot=slot)
        return False

    def _flox_node(self, *words: str) -> Ended:
        return self._run(["flox_node", *words, "--host-root", self._root, "--json"], _WORK_TIMEOUT_S)

    def _happened(self, seen: Seen) -> Happening:
        if not seen.installed:
            return Happening.INSTALLED
        if seen.upgrade:
            return Happening.UPGRADED
        self.counters.repairs += 1
        return Happening.REPAIRED

    def _converged(self, happening: Happening | None = None) -> float:
        self._failures = 0
        if not self._seen.live:  # an install ends with the handler live; a look a moment later may not see it
            return self._failed(Ended(9, {"error": "outside", "cause": "containerd does not serve the handler flox."}))
        text = f"containerd serves the handler flox (payload {self._seen.payload})."
        self._publish(Reason.INSTALLED, text, happening=happening)
        return _REVIEW_S

    def _failed(self, ended: Ended) -> float:
        told = failures.of(ended)
        self._failures += 1
        self.counters.failures[told.reason] = self.counters.failures.get(told.reason, 0) + 1
        self._publish(told.reason, ended.message, happening=told.happening)
        return told.retry_after(self._failures)

    def _count(self, ended: Ended) -> None:
        if ended.error == "rolled-back":
            self.counters.rollbacks += 1
            self.counters.restarts += 2  # there and back
        for step in ended.body.get("steps", ()):
            if step["outcome"] == "done":
                kind = step["key"].partition(":")[0]
                self.counters.phases[kind] = step["seconds"]
                self.counters.restarts += any(note.startswith("restarted") for note in step["steps"])

    def _publish(self, reason: Reason, message: str, *, slot: str = "", happening: Happening | None = None) -> None:
        message = message if len(message) <= _MESSAGE_LIMIT else f"{message[: _MESSAGE_LIMIT - 3]}..."
        event = self.state.event
        if happening is not None:
            new = Event(time.time_ns() // 1_000_000, happening, message)
            is_known = event is not None and (event.reason, event.message) == (happening, message)
            event = event if is_known and new.is_warning else new  # each try fails in the same way: told once
        state = NodeState(
            reason=reason,
            message=message,
            live=self._seen.live,
            slot=slot,
            target=self._seen.payload,
            share=self._share,
            identity=self._seen.identity,
            platform=self._seen.platform,
            versions=self._seen.versions,
            event=event,
        )
        if state != self.state:
            say(f"{state.phase}: {reason}: {message}")
        self.state = state
        exchange.write(self._own, "state.json", state)


def serve(agent: NodeAgent, port: int = 9580) -> int:
    """Run the loop until SIGTERM. What a child is doing then is waited for, and nothing new is begun."""
    health = Health(port, ready=lambda: agent.state.phase.settled, metrics=lambda: _metrics(agent))
    stopping: list[int] = []
    wake, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    with FolderWatch() as configuration, FolderWatch() as grants, FolderWatch() as notes:
        grants.follow([str(agent.grants)])
        while not stopping:
            health.alive_for(_WORK_TIMEOUT_S + 2 * _LOOK_TIMEOUT_S)
            grants.drain()
            due = time.monotonic() + agent.converge()
            configuration.follow(agent.folders())
            configuration.drain()
            while not stopping and not _is_due(agent, configuration, grants, notes, due, wake):
                health.alive_for(_TICK_S + 60)
    return 0


def _is_due(
    agent: NodeAgent, configuration: FolderWatch, grants: FolderWatch, notes: FolderWatch, due: float, wake: int
) -> bool:
    """Wait a while; whether there is a reason for the next pass."""
    notes.drain()
    notes.follow(agent.notice_folders())  # they come with the first pod
    agent.pass_notices()
    noticed, _, _ = select.select(
        [configuration.fileno(), grants.fileno(), notes.fileno(), wake],
        [],
        [],
        min(_TICK_S, max(0.0, due - time.monotonic())),
    )
    if time.monotonic() >= due or (agent.state.slot and grants.fileno() in noticed) or agent.has_other_settings():
        return True
    grants.drain()
    if configuration.fileno() in noticed:
        time.sleep(_SETTLE_S)
        configuration.drain()
    agent.gc_if_full()
    changed = agent.changed() or configuration.fileno() in noticed
    # A failure waits its time out: what a rollback wrote looks like a change, too.
    return changed and agent.state.phase is not Phase.FAILED


def _metrics(agent: NodeAgent) -> bytes:
    from flox_node.agent.metrics import exposition  # 4 MiB that only a node that is scraped needs

    return exposition(agent.state, agent.seen, agent.counters)


def say(text: str) -> None:
    """One line of the pod's log."""
    print(text, file=sys.stderr, flush=True)
