"""Slots: leases that pace restarts of containerd over a cluster. One node first, then a share of them at a time.

All nodes want `flox-node-slot-0` until one of them has succeeded with what is being rolled out. That one writes into
the lease what it proved and how many slots there are from then on; every node then has one slot to queue at, told by
its name. Waiting is one watch, and a slot that falls free is taken after a short random pause during which somebody
else's taking it is noticed: so a thousand nodes cost some ten requests each, and no coordinator.
"""

from __future__ import annotations

import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flox_node.kube.api import Api, ApiError, Object
from flox_node.kube.names import NAME, PREFIX, SLOT_PREFIX

DURATION_S = 600
"""How long a slot is kept for a node that is not heard of any more; longer than any restart with its rollback."""
PROVEN = f"{PREFIX}proven"
SLOTS = f"{PREFIX}slots"
_PAUSE_S = 1.0
_WATCH_S = 120.0
_TICK_S = 0.5
_FIRST = f"{SLOT_PREFIX}0"


@dataclass(frozen=True)
class Slot:
    """A lease as we understand it. `version` is its resourceVersion, "" where there is none; `renewed` in seconds."""

    name: str
    version: str = ""
    holder: str = ""
    renewed: float = 0.0
    duration_s: float = DURATION_S
    proven: str = ""
    slots: int = 1
    transitions: int = 0

    def is_free(self, node: str, now: float) -> bool:
        """Whether `node` may take it: nobody holds it, it does so itself, or who holds it is not heard of any more."""
        return self.holder in ("", node) or now - self.renewed > self.duration_s


def parse(name: str, lease: Mapping[str, Any] | None) -> Slot:
    """Read a lease; what cannot be understood in it counts as not said."""
    if lease is None:
        return Slot(name)
    metadata, spec = lease.get("metadata") or {}, lease.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    slots = str(annotations.get(SLOTS, ""))
    return Slot(
        name=name,
        version=str(metadata.get("resourceVersion") or ""),
        holder=str(spec.get("holderIdentity") or ""),
        renewed=_seconds(spec.get("renewTime")),
        duration_s=float(spec.get("leaseDurationSeconds") or DURATION_S),
        proven=str(annotations.get(PROVEN) or ""),
        slots=max(1, int(slots)) if slots.isascii() and slots.isdigit() else 1,
        transitions=int(spec.get("leaseTransitions") or 0),
    )


def name_for(node: str, target: str, first: Slot) -> str:
    """The slot that a node queues at: the first one until `target` is proven, then one of as many as there are."""
    if first.proven != target:
        return _FIRST
    number = int.from_bytes(hashlib.sha256(node.encode()).digest()[:8])
    return f"{SLOT_PREFIX}{number % first.slots}"


class Slots:
    """The slots of one installation, for one node."""

    def __init__(self, api: Api, namespace: str, node: str) -> None:
        self._api, self._node = api, node
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace

    def acquire(self, target: str, still_wanted: Callable[[], bool]) -> Slot | None:
        """Wait for a slot to roll `target` out, and take it; None when it is not wanted any more.

        Raises:
            ApiError: the API server does not answer.
        """
        known = {_FIRST: self._get(_FIRST)}
        while still_wanted():
            name = name_for(self._node, target, known[_FIRST])
            slot = known.get(name) or self._get(name)
            if not slot.is_free(self._node, time.time()):
                known[name] = self._wait(slot, still_wanted)
            elif (taken := self._take(slot)) is not None:
                return taken
            else:
                time.sleep(random.uniform(0, _PAUSE_S))
                known[name] = self._get(name)
        return None

    def release(self, slot: Slot, *, proven: str = "", slots: int = 0) -> None:
        """Give a slot back. `proven` is what was rolled out well; `slots` how many there may be from now on."""
        lease = self._lease(slot, "", proven or slot.proven, slots or slot.slots)
        try:
            self._write("PUT", f"{self._leases}/{slot.name}", lease)
        except ApiError as error:
            if error.reason not in ("Conflict", "NotFound"):  # we were so long that somebody else took it
                raise

    def _get(self, name: str) -> Slot:
        try:
            return parse(name, self._api.request("GET", f"{self._leases}/{name}"))
        except ApiError as error:
            if error.reason == "NotFound":
                return Slot(name)
            raise

    def _take(self, slot: Slot) -> Slot | None:
        """The slot as ours; None when somebody else was faster."""
        lease = self._lease(slot, self._node, slot.proven, slot.slots)
        try:
            if slot.version:
                taken = self._write("PUT", f"{self._leases}/{slot.name}", lease)
            else:
                taken = self._write("POST", self._leases, lease)
        except ApiError as error:
            # Forbidden: by the API server's clock the former holder's time is not over.
            if error.reason in ("Conflict", "AlreadyExists", "NotFound", "Forbidden"):
                return None
            raise
        return parse(slot.name, taken)

    def _write(self, method: str, path: str, lease: Object) -> Object:
        # The admission policy tells the time by when this manager wrote: a policy has no clock of its own.
        return self._api.request(method, path, lease, query={"fieldManager": NAME})

    def _wait(self, slot: Slot, still_wanted: Callable[[], bool]) -> Slot:
        """Watch a slot until it seems worth trying, is not wanted any more, or the watch ends."""
        left = slot.renewed + slot.duration_s - time.time()
        watch_s = max(1.0, min(_WATCH_S, left + _PAUSE_S))
        events: queue.Queue[Slot | ApiError | None] = queue.Queue()
        threading.Thread(target=self._follow, args=(slot, watch_s, events), daemon=True).start()
        patience = _TICK_S
        while True:
            try:
                event = events.get(timeout=patience)
            except queue.Empty:
                if slot.is_free(self._node, time.time()) or not still_wanted():
                    return slot
                continue
            if event is None:
                return slot
            if isinstance(event, ApiError):
                if event.reason in ("Expired", "Gone"):  # our version is too old to go on from
                    return self._get(slot.name)
                raise event
            slot = event
            if slot.proven and slot.name == _FIRST:
                time.sleep(random.uniform(0, _PAUSE_S))
                return slot
            patience = random.uniform(0, _PAUSE_S) if slot.is_free(self._node, time.time()) else _TICK_S

    def _follow(self, slot: Slot, timeout_s: float, events: queue.Queue[Slot | ApiError | None]) -> None:
        query = {"fieldSelector": f"metadata.name={slot.name}", "resourceVersion": slot.version}
        try:
            for event in self._api.watch(self._leases, query=query, timeout_s=timeout_s):
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise ApiError(str(status.get("message")), reason=str(status.get("reason")))
                if event.get("type") == "DELETED":
                    events.put(Slot(slot.name))
                elif event.get("type") in ("ADDED", "MODIFIED"):
                    events.put(parse(slot.name, event["object"]))
            events.put(None)
        except ApiError as error:
            events.put(error)

    def _lease(self, slot: Slot, holder: str, proven: str, slots: int) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        metadata: Object = {
            "name": slot.name,
            "namespace": self._namespace,
            "annotations": {PROVEN: proven, SLOTS: str(slots)},
        }
        if slot.version:
            metadata["resourceVersion"] = slot.version
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": DURATION_S,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": slot.transitions + (1 if holder and holder != slot.holder else 0),
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def _seconds(moment: object) -> float:
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return 0.0
