"""Looking at a cluster until its nodes are where they should be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from flox_node.errors import OutsideError
from flox_node.kube.api import Api, ApiError
from flox_node.kube.names import NAME, NAMESPACE
from flox_node.kube.resources import DAEMON_SETS, NODES, PODS, REVISIONS, find, listed
from flox_node.kube.rollout import NodeRow, Rollout, State, owned_by, rollout

Show = Callable[[Rollout], None]
_PAUSE_S = 1.0
_SHARE = 10  # in a large cluster a look takes long: the pauses are ten times that


@dataclass(frozen=True)
class Followed:
    """The last look. `down_before` are the nodes that were down at the first one: nobody waits for them."""

    rollout: Rollout
    down_before: frozenset[str]

    @property
    def late(self) -> list[NodeRow]:
        """The nodes that should have been settled by now."""
        return self.rollout.open(leaving=self.down_before)


def look(api: Api) -> Rollout | None:
    """How far each node is; None where there is no DaemonSet of ours."""
    daemon_set = find(api, DAEMON_SETS.path(NAME, namespace=NAMESPACE))
    if daemon_set is None:
        return None
    # Revisions before pods: a pod of a revision that came in between would be taken for one of the former version.
    revisions = list(listed(api, REVISIONS.path(namespace=NAMESPACE)))
    pods = [pod for pod in listed(api, PODS.path(namespace=NAMESPACE)) if owned_by(daemon_set, pod)]
    return rollout(daemon_set, revisions, listed(api, NODES.path()), pods)


def follow(
    api: Api,
    show: Show,
    *,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Followed:
    """Look again and again, until every node is settled or `timeout` seconds have passed; `show` is told of each look.

    An API server that does not answer for a while is waited for: on some distributions it restarts with containerd.
    """
    end = clock() + timeout
    found: Followed | None = None
    while True:
        started = clock()
        failed: ApiError | None = None
        try:
            now = look(api)
        except ApiError as error:
            if not _passes(error):
                raise
            failed = error
        else:
            if now is None:
                raise OutsideError("The DaemonSet was removed by somebody else.", remedy="Run the command again.")
            down = frozenset(row.name for row in now.nodes if row.state is State.DOWN)
            found = Followed(now, found.down_before if found else down)
            show(now)
            if not found.late:
                return found
        pause = max(_PAUSE_S, _SHARE * (clock() - started))
        if clock() + pause > end:
            if found is None or failed is not None:
                raise failed or OutsideError("There was no time for a look.")
            return found
        sleep(pause)


def _passes(error: ApiError) -> bool:
    return error.status in (0, 410, 429) or error.status >= 500
