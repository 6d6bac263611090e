"""One look at the node by a process of its own: what it is, what it lacks, what to watch. Printed as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from flox_node.actions import RegisterHandler
from flox_node.agent.seen import Seen
from flox_node.containerd.live import daemon
from flox_node.errors import FloxNodeError
from flox_node.host import Host
from flox_node.host.watch import fingerprint
from flox_node.names import HANDLER
from flox_node.payload import Payload
from flox_node.plan import Outcome, StepResult, preview, store, watched
from flox_node.plan.heal import OursToBlameError
from flox_node.plan.status import NodeStatus, status
from flox_node.settings import Settings


def look(host: Host, payload: Payload, settings: Settings) -> Seen:
    """Compare the node with what an install of `payload` would make of it. Writes nothing."""
    watch = watched.find(host)
    # Before everything else: what changes while we look is noticed later.
    fingerprints = {path: list(fingerprint(host.files, path)) for path in watch.paths}
    found: NodeStatus | None = None
    needed: list[StepResult] = []
    error = None
    try:
        found = status(host, settings)
        needed = [step for step in preview(host, payload, settings).steps if step.outcome is Outcome.NEEDED]
    except OursToBlameError as failure:
        needed = [StepResult(RegisterHandler.kind, "take the handler out", Outcome.NEEDED, failure.cause)]
    except FloxNodeError as failure:
        error = failure.as_dict()
    manifest = payload.manifest
    installed = bool(found and found.installed)
    return Seen(
        installed=installed,
        upgrade=bool(found and found.installed and found.payload_id != manifest.id),
        live=bool(found and found.handler_live),
        platform=found.platform if found else "",
        payload=manifest.id,
        versions={
            "payload": manifest.id,
            "shim": manifest.version,
            "flox": store.version_of(manifest.entry_points.get("flox", "")),
            "containerd": found.containerd_version if found else "",
        },
        identity=watch.identity,
        needed=tuple(step.key for step in needed),
        reason=needed[0].reason if needed else "",
        restart=any(step.key == RegisterHandler.kind for step in needed),
        drift=len(found.drift) if found else 0,
        error=error,
        folders=watch.folders,
        paths=fingerprints,
        gauges=_gauges(host, settings),
    )


def show(seen: Seen) -> str:
    """As JSON."""
    return json.dumps(dataclasses.asdict(seen))


def _gauges(host: Host, settings: Settings) -> dict[str, float]:
    gauges = store.gauges(host)
    with contextlib.suppress(FloxNodeError):  # containerd is down: other metrics say so
        sandboxes = daemon.cri(host, daemon.cri_socket(host, settings.socket)).sandboxes()
        gauges["sandboxes"] = sum(sandbox.ready and sandbox.handler == HANDLER for sandbox in sandboxes)
    return gauges
