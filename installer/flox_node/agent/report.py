"""One report by a process of its own: the node's slot, its label, taint, condition and events, and its pods' events."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from flox_node import settings
from flox_node.agent import exchange
from flox_node.agent.exchange import Event, Granted, NodeState, PodNews, Reported, Told
from flox_node.environments import notices
from flox_node.environments.notices import Notice
from flox_node.errors import OutsideError, UsageError
from flox_node.kube import events, node
from flox_node.kube.api import JSON_PATCH, STRATEGIC_PATCH, Api, ApiError, Object
from flox_node.kube.names import NAME, Phase, PodHappening, Reason
from flox_node.kube.slots import Slot, Slots

_POLL_S = 0.3
_TRIES = 4
_HANDLER_WAIT_S = 60.0
_HANDLER_POLL_S = 4.0  # the kubelet tells every ten seconds
_POD_HAPPENINGS = {
    notices.FETCHING: PodHappening.FETCHING,
    notices.HOOK_FAILED: PodHappening.HOOK_FAILED,
    notices.HUB_UNREACHABLE: PodHappening.HUB_UNREACHABLE,
}


class Reporter:
    """Tells the API server about one node."""

    def __init__(
        self,
        api: Api,
        node_name: str,
        namespace: str,
        *,
        own: Path = exchange.REPORTER,
        other: Path = exchange.NODE,
        folder: Path = settings.FOLDER,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """folder: of the settings."""
        self._settings = folder
        self._api, self._name, self._namespace = api, node_name, namespace
        self._slots = Slots(api, namespace, node_name)
        self._own, self._other, self._sleep = own, other, sleep
        self._path = f"/api/v1/nodes/{node_name}"

    def run(self) -> None:
        """Tell what there is to tell, and hold a slot for as long as the node wants one.

        Raises:
            ApiError: the API server refused something, or does not answer.
        """
        self._tell_pods()
        state = self._state()
        while state is not None:
            if not state.slot:
                self.sync(state)
            else:
                if self._reported() is not None:
                    self.sync(state)  # a node that was ready is not any more: that is told first
                self._hold(state)
            told, state = self._reported(), self._state()
            if state is None or (not state.slot and told is not None and told.state == state.digest):
                return

    def sync(self, state: NodeState) -> None:
        """Bring label, annotations, taint, condition and events of the Node in line with `state`.

        Raises:
            ApiError: see `run`.
        """
        before = self._reported() or Reported()
        found = self._settled_node(state)
        wanted = _wanted(state, found)
        self._patch(found, wanted)
        condition = node.condition(found, wanted, _now())
        if condition is not None:
            self._api.request("PATCH", f"{self._path}/status", condition, content_type=STRATEGIC_PATCH)
        if state.event is not None and state.event.number > before.event:
            self._tell(found, state.event)
        told = Reported(state.digest, state.event.number if state.event else before.event)
        exchange.write(self._own, "reported.json", told)
        if state.live and not wanted.live and state.phase is Phase.CONVERGED:
            raise OutsideError(wanted.message)

    def alone(self) -> None:
        """Say of a node that no `node` container works on what its kubelet says: the handler is there, or is not.

        Raises:
            ApiError: see `run`.
            OutsideError: the handler is not there (yet).
        """
        found = self._api.request("GET", self._path)
        handlers = found.get("status", {}).get("runtimeHandlers")
        if not handlers:
            text = "The kubelet reports no handlers: that takes containerd 2 and Kubernetes 1.31."
        elif node.lacks_handler(found):
            text = "The kubelet does not report the handler flox: the image or the bootstrap of this node has failed."
        else:
            text = ""
        reason = Reason.NOT_LIVE if text else Reason.INSTALLED
        wanted = node.Wanted(not text, reason, text or "The kubelet reports the handler flox.", down=bool(text))
        self._patch(found, wanted)
        condition = node.condition(found, wanted, _now())
        if condition is not None:
            self._api.request("PATCH", f"{self._path}/status", condition, content_type=STRATEGIC_PATCH)
        if text:
            raise OutsideError(text, remedy="`journalctl -t flox-node` on the node tells more.")

    def _state(self) -> NodeState | None:
        return exchange.read(self._other, "state.json", NodeState)

    def _reported(self) -> Reported | None:
        return exchange.read(self._own, "reported.json", Reported)

    def _hold(self, state: NodeState) -> None:
        """Get a slot, tell the node, and give the slot back once the node has done its work."""

        def wanted() -> bool:
            with contextlib.suppress(ApiError):  # tried again
                self._tell_pods()
            now = self._state()
            return now is not None and now.slot == state.slot

        slot = self._slots.acquire(state.target, wanted)
        if slot is None:
            return
        with self._given_back(slot, state.target):
            installing = node.Wanted(state.live, Reason.INSTALLING, state.message)
            body = {"status": {"conditions": [node.condition_of(installing, _now())]}}
            with contextlib.suppress(ApiError):  # nice to know, and no reason not to go on
                self._api.request("PATCH", f"{self._path}/status", body, content_type=STRATEGIC_PATCH)
            exchange.write(self._own, "slot.json", Granted(state.slot))
            while wanted():
                self._sleep(_POLL_S)
            after = self._state()
            if after is not None and not after.slot:
                self.sync(after)

    @contextlib.contextmanager
    def _given_back(self, slot: Slot, target: str) -> Iterator[None]:
        try:
            yield
        finally:
            exchange.write(self._own, "slot.json", Granted())
            state = self._state()
            if state is not None and state.phase is Phase.CONVERGED:
                slots = self._share(state) if slot.name.endswith("-0") else 0
                self._slots.release(slot, proven=target, slots=slots)
            elif state is None or state.phase is not Phase.WORKING:
                self._slots.release(slot)
            # A node that still works keeps its slot until that is free by itself.

    def _share(self, state: NodeState) -> int:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/daemonsets/{NAME}"
        wanted = self._api.request("GET", path).get("status", {}).get("desiredNumberScheduled")
        return settings.slots(state.share, int(wanted or 1))

    def _settled_node(self, state: NodeState) -> Object:
        """The Node; where the kubelet reports handlers, it gets the time to report ours."""
        end = time.monotonic() + _HANDLER_WAIT_S
        while True:
            found = self._api.request("GET", self._path)
            if not (state.live and state.phase is Phase.CONVERGED and node.lacks_handler(found)):
                return found
            if time.monotonic() > end:
                return found
            self._sleep(_HANDLER_POLL_S)

    def _patch(self, found: Object, wanted: node.Wanted) -> None:
        for attempt in range(_TRIES):
            operations = node.patch(found, wanted, self._startup_taints())
            if not operations:
                return
            try:
                self._api.request("PATCH", self._path, operations, content_type=JSON_PATCH)
            except ApiError as error:
                # A `test` that failed: somebody else wrote the Node since we read it.
                if error.status not in (409, 422) or attempt == _TRIES - 1:
                    raise
                found = self._api.request("GET", self._path)
            else:
                return

    def _startup_taints(self) -> tuple[str, ...]:
        try:
            return settings.load(self._settings).startup_taints
        except UsageError:  # the node tells it
            return settings.STARTUP_TAINTS

    def _tell_pods(self) -> None:
        """Tell pods on this node what it has to say to them, each thing once.

        Raises:
            ApiError: the API server does not answer. What it refuses (the namespace is gone) is not tried again.
        """
        news = exchange.read(self._other, "pods.json", PodNews) or PodNews()
        before = (exchange.read(self._own, "told.json", Told) or Told()).ids
        told = [notice.id for notice in news.notices if notice.id in before]
        for notice in news.notices:
            if notice.id not in before:
                self._tell_pod(notice)
                told.append(notice.id)
                exchange.write(self._own, "told.json", Told(tuple(told)))

    def _tell_pod(self, notice: Notice) -> None:
        body = events.about_pod(
            notice.namespace,
            notice.pod,
            notice.uid,
            _POD_HAPPENINGS[notice.kind],
            notice.message,
            number=notice.at_ms,
            node=self._name,
            now=_now(),
        )
        try:
            self._api.request("POST", f"/api/v1/namespaces/{notice.namespace}/events", body)
        except ApiError as error:
            if error.status not in (403, 404, 409, 422):
                raise

    def _tell(self, found: Object, event: Event) -> None:
        body = events.about_node(
            found, event.reason, event.message, number=event.number, warning=event.is_warning, now=_now()
        )
        try:
            self._api.request("POST", f"/api/v1/namespaces/{events.NAMESPACE}/events", body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise


def _wanted(state: NodeState, found: Object) -> node.Wanted:
    wanted = node.Wanted(
        live=state.live and state.phase not in (Phase.FAILED, Phase.REFUSED, Phase.UNINSTALLED),
        down=bool(state.identity) and not state.live,
        reason=state.reason,
        message=state.message,
        gone=state.phase is Phase.UNINSTALLED,
        platform=state.platform,
        versions=state.versions,
    )
    if wanted.live and node.lacks_handler(found):
        text = "containerd serves the handler flox, but the kubelet does not report it."
        return dataclasses.replace(wanted, live=False, down=True, reason=Reason.NOT_LIVE, message=text)
    return wanted


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
