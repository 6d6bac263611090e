"""Making a cluster's nodes what they were before, and taking our objects out of it.

Every step is found done by a second run, so one that was interrupted is simply started again: the label, then the live
DaemonSet's mode, then the objects once every node is reverted. The DaemonSet is what remembers which nodes are not.
"""

from __future__ import annotations

import contextlib
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence

from flox_node.errors import InUseError, OutsideError, RefusedError
from flox_node.kube.api import JSON_PATCH, STRATEGIC_PATCH, Api, Object
from flox_node.kube.apply import Applied, Verb, delete, in_order
from flox_node.kube.manifests import Options, objects
from flox_node.kube.names import CONDITION, ENABLED, EXCLUDE, NAME, NAMESPACE, RUNTIME_CLASS
from flox_node.kube.resources import (
    CONFIG_MAPS,
    DAEMON_SETS,
    NAMESPACES,
    NODES,
    PODS,
    RUNTIME_CLASSES,
    find,
    listed,
)
from flox_node.kube.rollout import Rollout, State, condition, has_mode, reverts_nodes, with_mode
from flox_node.kube.waiting import Followed, Show, follow, look

Say = Callable[[str], None]
_ALIVE = "status.phase!=Succeeded,status.phase!=Failed"
_SHOWN = 20
_AGAIN = "then run `flox-node cluster uninstall` again: it goes on where it stopped."


def uninstall(
    api: Api,
    *,
    say: Say,
    show: Show,
    timeout: float,
    purge: bool = False,
    abandon: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Rollout | None:
    """Do it all; what became of the nodes, or None where no DaemonSet was left. `say` is told of each step.

    Raises:
        InUseError: Flox pods run; nothing was changed.
        RefusedError: no DaemonSet would revert some of the installed nodes, and it is not said to `abandon` them;
            nothing was changed.
        OutsideError: not all nodes were reverted, or the namespace was not gone, after `timeout` seconds.
    """
    end = clock() + timeout
    seen = look(api)
    if seen is None and find(api, NAMESPACES.path(NAMESPACE)) is None:
        return None  # the namespace goes last: what is left and looks like ours is somebody else's
    require_unused(api)
    daemon_set = find(api, DAEMON_SETS.path(NAME, namespace=NAMESPACE))
    reverts = daemon_set is None or reverts_nodes(daemon_set)
    orphans = unmanaged(listed(api, NODES.path()), seen if reverts else None)
    if orphans and not abandon:
        raise _orphaned(orphans, seen, reverts=reverts)
    for name in orphans:
        say(f"{name} left installed")
    for name in remove_labels(api):
        say(f"label removed from {name}")
    if seen is not None and reverts:
        if purge:
            ask_for_purge(api)
        if switch(api, seen):
            say("DaemonSet flox-node told to revert its nodes")
        followed = follow(api, show, timeout=end - clock(), clock=clock, sleep=sleep)
        require_reverted(followed)
        seen = followed.rollout
    for gone in remove(api, objects(Options(pod_monitor=True))):
        say(str(gone))
    require_gone(api, timeout=end - clock(), clock=clock, sleep=sleep)
    return seen


def flox_pods(pods: Iterable[Object], runtime_classes: Iterable[Object]) -> list[Object]:
    """Those of the pods that need the handler, by whatever name its RuntimeClass goes."""
    names = {RUNTIME_CLASS} | {each["metadata"]["name"] for each in runtime_classes if each["handler"] == RUNTIME_CLASS}
    return [pod for pod in pods if pod["spec"].get("runtimeClassName") in names]


def require_unused(api: Api) -> None:
    """Raises InUseError with a list of the Flox pods that have not ended."""
    alive = listed(api, PODS.path(), {"fieldSelector": _ALIVE})
    pods = [
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']} ({pod['spec'].get('nodeName') or 'on no node yet'})"
        for pod in flox_pods(alive, listed(api, RUNTIME_CLASSES.path()))
    ]
    if pods:
        raise InUseError(
            f"{len(pods)} pods need the handler flox: {_enumerated(pods)}.",
            remedy=f"Delete them and what makes them (Deployments, Jobs, ...), {_AGAIN}",
        )


def unmanaged(nodes: Iterable[Object], seen: Rollout | None) -> list[str]:
    """The nodes that are installed, but that no DaemonSet of ours reverts."""
    managed = {row.name for row in seen.nodes} if seen else set()
    live = [node["metadata"]["name"] for node in nodes if condition(node, CONDITION).get("status") == "True"]
    return [name for name in live if name not in managed]


def remove_labels(api: Api) -> Iterator[str]:
    """Take the label from all nodes, so that no further Flox pod comes to them; the names of those that had it."""
    for node in list(listed(api, NODES.path(), {"labelSelector": ENABLED})):
        name = node["metadata"]["name"]
        change = {"metadata": {"labels": {ENABLED: None}}}
        api.request("PATCH", NODES.path(name), change, content_type=STRATEGIC_PATCH, query={"fieldManager": NAME})
        yield name


def ask_for_purge(api: Api) -> None:
    """Have the nodes remove the store, too."""
    path = CONFIG_MAPS.path(NAME, namespace=NAMESPACE)
    data = api.request("GET", path).get("data") or {}
    change = {"data": {"settings.toml": with_purge(data.get("settings.toml", ""))}}
    api.request("PATCH", path, change, content_type=STRATEGIC_PATCH, query={"fieldManager": NAME})


def with_purge(text: str) -> str:
    """settings.toml with `purge = true`, and all else as it is. What is no TOML is kept as a comment."""
    import tomlkit

    with contextlib.suppress(ValueError):
        document = tomlkit.parse(text)
        document["purge"] = True
        if tomllib.loads(changed := document.as_string())["purge"] is True:
            return changed
    return "purge = true\n" + "".join(f"# {line}" for line in text.splitlines(keepends=True))


def switch(api: Api, seen: Rollout) -> bool:
    """Have the live DaemonSet revert its nodes; whatever else somebody changed in it stays. Whether it had to be told.

    What is replaced is tested: a change by somebody else in the meantime makes this fail instead of being lost.
    """
    path = DAEMON_SETS.path(NAME, namespace=NAMESPACE)
    patch = mode_patch(api.request("GET", path), [row.name for row in seen.nodes if row.state is State.DOWN])
    if patch:
        api.request("PATCH", path, patch, content_type=JSON_PATCH, query={"fieldManager": NAME})
    return bool(patch)


def mode_patch(daemon_set: Object, down: Sequence[str]) -> list[Object]:
    """The JSON patch that makes a DaemonSet uninstall; empty where it does already.

    Nodes that are down use up what may be unavailable, and the rollout would never come to the others: it may be that
    much more.
    """
    patch: list[Object] = []
    for index, container in enumerate(daemon_set["spec"]["template"]["spec"]["containers"]):
        path = f"/spec/template/spec/containers/{index}/args"
        old = container.get("args") or []
        new = with_mode(old, "uninstall")
        if has_mode(old) and old != new:
            patch += [{"op": "test", "path": path, "value": old}, {"op": "replace", "path": path, "value": new}]
    if not patch:
        return []
    rolling = daemon_set["spec"].get("updateStrategy", {}).get("rollingUpdate") or {}
    desired = daemon_set.get("status", {}).get("desiredNumberScheduled", 1)
    unavailable = _number(rolling.get("maxUnavailable", 1), desired) + len(down)
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": 0}}
    return [*patch, {"op": "add", "path": "/spec/updateStrategy", "value": strategy}]


def require_reverted(followed: Followed) -> None:
    """Raises OutsideError with the nodes that are not reverted, and what to do with each kind."""
    late = [row for row in followed.rollout.nodes if row.state is not State.REVERTED]
    if not late:
        return
    down = [row for row in late if row.state is State.DOWN]
    told = _enumerated([f"{row.name} ({row.reason}: {row.message})" for row in late])
    remedy = f"`flox-node cluster doctor` tells more; repair them, {_AGAIN}"
    if len(down) == len(late):
        remedy = f"Bring them back, or `kubectl delete node NAME` those that are gone for good, {_AGAIN}"
    raise OutsideError(f"{len(late)} of {len(followed.rollout.nodes)} nodes are not reverted: {told}.", remedy=remedy)


def remove(api: Api, objects: Sequence[Object]) -> Iterator[Applied]:
    """Delete the objects in the reverse of their order: the DaemonSet first, the namespace last."""
    for each in reversed(in_order(objects)):
        if delete(api, each):
            yield Applied(each["kind"], each["metadata"]["name"], Verb.DELETED)


def require_gone(api: Api, *, timeout: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    """Wait until the namespace is gone; OutsideError when it is not after `timeout` seconds."""
    end = clock() + timeout
    while (namespace := find(api, NAMESPACES.path(NAMESPACE))) is not None:
        if clock() > end:
            why = "; ".join(str(each.get("message")) for each in namespace["status"].get("conditions") or [])
            raise OutsideError(
                f"The namespace {NAMESPACE} is not gone yet: {why or 'it is still terminating'}.",
                remedy="Nothing else has to be done; `kubectl get namespace flox-node` shows when it is.",
            )
        sleep(1.0)


def _orphaned(names: Sequence[str], seen: Rollout | None, *, reverts: bool) -> RefusedError:
    without = "or run `flox-node uninstall` on these nodes, and this command with --abandon. Nothing was changed."
    if seen is None:
        return RefusedError(
            f"The DaemonSet is gone, but these nodes are still installed: {_enumerated(names)}.",
            remedy=f"Bring it back with `flox-node cluster install`, then uninstall; {without}",
        )
    if not reverts:
        return RefusedError(
            f"An image or a bootstrap made these, and the reporter alone does not revert them: {_enumerated(names)}.",
            remedy="Replace the nodes and use --abandon, or `kubectl apply -f daemonset/flox-node.yaml` first: that "
            "DaemonSet adopts and reverts them. Nothing was changed.",
        )
    return RefusedError(
        f"These nodes are installed, but the DaemonSet does not select them: {_enumerated(names)}.",
        remedy=f"Have it select them again (its nodeSelector, the label {EXCLUDE}); {without}",
    )


def _number(value: int | str, of: int) -> int:
    if isinstance(value, int):
        return max(1, value)
    return max(1, -(-of * int(value.rstrip("%")) // 100))


def _enumerated(words: Sequence[str]) -> str:
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
