"""The Flox pods: what they ask for, and why they do not start."""

from __future__ import annotations

from flox_node.environments.annotations import annotation_faults
from flox_node.findings import State, Verdict, told
from flox_node.kube.api import Object
from flox_node.kube.doctor.facts import Check, Facts, some
from flox_node.kube.names import RUNTIME_CLASS
from flox_node.kube.rollout import pod_trouble

_ENDED = ("Succeeded", "Failed")
_PATIENCE_S = 60.0


def decide_pending(facts: Facts) -> Verdict:
    """The scheduler's word, the kubelet's last warning, or what a container waits for."""
    causes = []
    for pod in facts.flox_pods:
        if pod["status"].get("phase") != "Pending" or _class(pod, facts) != RUNTIME_CLASS:
            continue
        trouble = pod_trouble(pod)
        told_last = [": ".join(trouble)] if trouble else facts.events_about(pod["metadata"]["uid"])[-1:]
        if told_last or facts.age_s(pod["metadata"]["creationTimestamp"]) > _PATIENCE_S:
            causes.append(f"{_name(pod)}: {next(iter(told_last), 'nobody says why')}")
    return told(some(causes))


def decide_annotations(facts: Facts) -> Verdict:
    """Each pod's annotations of ours, judged without knowing any environment."""
    causes = [
        f"{_name(pod)}: {fault}"
        for pod in facts.flox_pods
        if pod["status"].get("phase") not in _ENDED
        for fault in annotation_faults(pod["metadata"].get("annotations") or {}, _class(pod, facts))
    ]
    return told(some(causes), state=State.WARNING)


def _class(pod: Object, facts: Facts) -> str:
    """The RuntimeClass of a pod; `flox` for every one that leads to our handler."""
    name = str(pod["spec"].get("runtimeClassName") or "")
    return RUNTIME_CLASS if name in facts.flox_classes else name


def _name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


CHECKS: tuple[Check, ...] = (
    Check(
        "flox-pods",
        "no Flox pod waits to be started",
        "the text names what the pod waits for; where no node matches, `flox-node cluster status` shows the nodes",
        decide_pending,
    ),
    Check(
        "annotations",
        "pods' flox.dev annotations are known and well-formed",
        "correct the pod's template: the environment is owner/name or owner/name:GENERATION, and the pod needs "
        "runtimeClassName: flox",
        decide_annotations,
    ),
)
