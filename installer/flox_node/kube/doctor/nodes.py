"""The nodes: which are not what they should be, and labels and taints that nobody follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from flox_node.findings import State, Verdict, skipped, told
from flox_node.kube import rollout
from flox_node.kube.api import Object
from flox_node.kube.doctor.facts import Check, Facts, named
from flox_node.kube.names import ENABLED, EXCLUDE, NOT_READY, Reason
from flox_node.kube.node import lacks_handler, startup_taints
from flox_node.kube.rollout import NodeRow

LONG_S = 15 * 60.0
_REASONS = set(map(str, Reason))


def _grouped(rows: Iterable[NodeRow]) -> list[str]:
    """Nodes with the same reason and message together."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        groups[row.reason, row.message].append(row.name)
    return [f"{named(names)}: {reason}: {message}" for (reason, message), names in groups.items()]


def _nodes(facts: Facts, state: rollout.State, *, shown: State) -> Verdict:
    if facts.rollout is None:
        return skipped("flox-node is not installed")
    rows = [row for row in facts.rollout.nodes if row.state is state]
    return told(_grouped(row for row in rows if row.reason in _REASONS or state is rollout.State.DOWN), state=shown)


def decide_failed(facts: Facts) -> Verdict:
    """What the nodes say themselves; pods that do not run have checks of their own."""
    return _nodes(facts, rollout.State.FAILED, shown=State.PROBLEM)


def decide_refused(facts: Facts) -> Verdict:
    """Flox pods simply do not come here."""
    return _nodes(facts, rollout.State.REFUSED, shown=State.WARNING)


def decide_down(facts: Facts) -> Verdict:
    """Nothing can be done on a node without a kubelet."""
    return _nodes(facts, rollout.State.DOWN, shown=State.WARNING)


def decide_slow(facts: Facts) -> Verdict:
    """Waiting for a slot may take its time in a large cluster, but nothing takes that long on one node."""
    if facts.rollout is None:
        return skipped("flox-node is not installed")
    slow = [
        row
        for row in facts.rollout.nodes
        if row.state is rollout.State.WORKING and facts.age_s(row.since) > LONG_S and row.reason != Reason.WAITING
    ]
    return told(_grouped(slow))


def decide_unmanaged(facts: Facts) -> Verdict:
    """They go on running Flox pods, but nobody repairs, upgrades or reverts them."""
    if facts.daemon_set is None:
        return skipped("flox-node is not installed")
    spec = facts.daemon_set["spec"]["template"]["spec"]
    names = [_name(node) for node in facts.nodes if ENABLED in _labels(node) and not rollout.selects(spec, node)]
    return told([f"the DaemonSet does not select {named(names)}"] if names else [], state=State.WARNING)


def decide_labels(facts: Facts) -> Verdict:
    """One label and one taint are ours, and one label keeps us away; names that resemble them do nothing."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in facts.nodes:
        for key, value in _labels(node).items():
            if key.startswith("flox") and key != EXCLUDE and (key, value) != (ENABLED, "true"):
                found[f"{key}={value}"].append(_name(node))
        for taint in node["spec"].get("taints") or []:
            if taint["key"].startswith("flox") and taint["key"] != NOT_READY:
                found[f"the taint {taint['key']}"].append(_name(node))
    return told([f"{what} on {named(names)}" for what, names in found.items()], state=State.WARNING)


def decide_taint(facts: Facts) -> Verdict:
    """It is lifted once the handler is live, some minutes after the node's boot."""
    names = [
        _name(node)
        for node in facts.nodes
        if startup_taints(node) and facts.age_s(node["metadata"]["creationTimestamp"]) > LONG_S
    ]
    keys = sorted({key for node in facts.nodes if _name(node) in names for key in startup_taints(node)})
    text = f"{named(names)} still has the startup taint {', '.join(keys)}: no pod is scheduled there"
    return told([text] if names else [])


def decide_reported(facts: Facts) -> Verdict:
    """Kubelets that know their runtime's handlers report them; where the label is preset, a taint keeps pods away."""
    names = [
        _name(node)
        for node in facts.nodes
        if ENABLED in _labels(node) and lacks_handler(node) and not startup_taints(node)
    ]
    return told([f"{named(names)} is labelled, but its kubelet does not report the handler"] if names else [])


def _name(node: Object) -> str:
    return str(node["metadata"]["name"])


def _labels(node: Object) -> dict[str, str]:
    return node["metadata"].get("labels") or {}


CHECKS: tuple[Check, ...] = (
    Check(
        "nodes-failed",
        "no node failed to become a Flox node",
        "repair what the text names: the node tries again by itself; `flox-node doctor` on the node tells more",
        decide_failed,
    ),
    Check(
        "nodes-refused",
        "every selected node can be a Flox node",
        f"the text names what would have to be different; a node that need not be one gets the label {EXCLUDE}",
        decide_refused,
    ),
    Check(
        "nodes-down",
        "the kubelets of the selected nodes answer",
        "bring the node back, or `kubectl delete node NAME` if it is gone for good",
        decide_down,
    ),
    Check(
        "nodes-slow",
        "no node takes unusually long",
        "`kubectl --namespace flox-node logs POD --all-containers` of the pod on that node shows where it stands",
        decide_slow,
    ),
    Check(
        "unmanaged-nodes",
        "every Flox node is one that the DaemonSet looks after",
        f"let the DaemonSet select it again, or run `flox-node uninstall` there and remove the label {ENABLED}",
        decide_unmanaged,
    ),
    Check(
        "node-labels",
        "labels and taints about Flox are known",
        f"a Flox node has the label {ENABLED}=true, set by flox-node; remove the others, also from node groups",
        decide_labels,
    ),
    Check(
        "startup-taint",
        "the startup taint was lifted",
        "see the other findings about this node; a node that the DaemonSet does not select must not have the taint",
        decide_taint,
    ),
    Check(
        "handler-reported",
        "kubelets report the handler on the nodes that are labelled",
        "`systemctl restart kubelet` on the node has it ask containerd again; the DaemonSet's pod repairs a handler "
        "that is not live",
        decide_reported,
    ),
)
