"""Making a cluster's nodes Flox nodes, and bringing them to another version: what is sent, and how it ended."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flox_node.errors import OutsideError, RefusedError
from flox_node.kube.api import Api, Object
from flox_node.kube.manifests import MINIMUM_MINOR, Options, objects
from flox_node.kube.names import NAME, NAMESPACE, RUNTIME_CLASS
from flox_node.kube.resources import CONFIG_MAPS, DAEMON_SETS, POD_MONITORS, RUNTIME_CLASSES, find
from flox_node.kube.rollout import NodeRow, State, mode_of
from flox_node.kube.waiting import Followed

_SHOWN = 10


def require_supported(api: Api) -> None:
    """Raises RefusedError where the API server is too old."""
    version = api.request("GET", "/version")
    if reason := too_old(version):
        raise RefusedError(reason, remedy="Upgrade the control plane, then run the command again. Nothing was changed.")


def too_old(version: Object) -> str:
    """Why flox-node does not work with an API server of this version; "" where it does."""
    # Hosted clusters say "31+".
    minor = re.match(r"\d+", str(version.get("minor", "")))
    if version.get("major") == "1" and minor and int(minor[0]) < MINIMUM_MINOR:
        return (
            f"This is Kubernetes {version.get('gitVersion')}. flox-node needs 1.{MINIMUM_MINOR} or newer: older API "
            "servers do not tell admission policies which node a token belongs to, so the pods could not be confined."
        )
    return ""


def live_options(api: Api, image: str) -> Options:
    """What this cluster's administrator chose when it was installed, with another image.

    Raises:
        RefusedError: nothing is installed, or it is being uninstalled.
    """
    daemon_set = find(api, DAEMON_SETS.path(NAME, namespace=NAMESPACE))
    if daemon_set is None:
        raise RefusedError("flox-node is not installed in this cluster.", remedy="Use `flox-node cluster install`.")
    if mode_of(daemon_set) == "uninstall":
        raise RefusedError(
            "flox-node is being uninstalled from this cluster.",
            remedy="`flox-node cluster uninstall` goes on with it, `flox-node cluster install` turns back.",
        )
    return chosen(
        image,
        daemon_set,
        find(api, RUNTIME_CLASSES.path(RUNTIME_CLASS)) or {},
        find(api, CONFIG_MAPS.path(NAME, namespace=NAMESPACE)) or {},
        pod_monitor=find(api, POD_MONITORS.path(NAME, namespace=NAMESPACE)) is not None,
    )


def chosen(image: str, daemon_set: Object, runtime_class: Object, settings: Object, *, pod_monitor: bool) -> Options:
    """The options that these objects were made from; `image` instead of theirs."""
    data = settings.get("data") or {}
    usual = next(each for each in objects() if each["kind"] == "DaemonSet")["spec"]["template"]["spec"]["nodeSelector"]
    pods = daemon_set["spec"]["template"]["spec"]
    selector = pods.get("nodeSelector") or {}
    usually_pulled = "Always" if image.endswith(":latest") else "IfNotPresent"
    pulled = pods["containers"][0].get("imagePullPolicy", usually_pulled)
    return Options(
        image=image,
        node_selector={key: value for key, value in selector.items() if usual.get(key) != value},
        overhead=(runtime_class.get("overhead") or {}).get("podFixed") or {},
        tolerations=(runtime_class.get("scheduling") or {}).get("tolerations") or (),
        settings=data.get("settings.toml"),
        policy=data.get("policy.toml"),
        pod_monitor=pod_monitor,
        image_pull_policy=None if pulled == usually_pulled else pulled,
    )


def require_ready(followed: Followed) -> None:
    """How an install or an upgrade ended.

    Nodes that finally refuse are no failure as long as there are others: a cluster may well have some on which no Flox
    pod is meant to run.

    Raises:
        OutsideError: nodes are not ready yet.
        RefusedError: no node can be a Flox node.
    """
    nodes = followed.rollout.nodes
    if late := followed.late:
        raise OutsideError(
            f"{len(late)} of {len(nodes)} nodes are not ready yet: {_told(late)}.",
            remedy="They go on by themselves: `flox-node cluster status` shows how far they are, "
            "`flox-node cluster doctor` what keeps them.",
        )
    if nodes and all(row.state is State.REFUSED for row in nodes):
        raise RefusedError(
            f"None of the nodes can run Flox pods: {_told(nodes)}.",
            remedy="The reasons name what would have to be different; `flox-node cluster uninstall` cleans up.",
        )


def _told(rows: Sequence[NodeRow]) -> str:
    told = [f"{row.name} ({row.state}, {row.reason}: {row.message})" for row in rows[:_SHOWN]]
    return "; ".join(told) + (f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
