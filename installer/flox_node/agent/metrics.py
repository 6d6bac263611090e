"""The metrics of a node, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flox_node import __version__
from flox_node.agent.exchange import NodeState
from flox_node.agent.seen import Seen
from flox_node.kube.names import Reason

_STORE = {
    "store_bytes": "Bytes of the packages in the Nix store.",
    "store_paths": "Packages in the Nix store.",
    "store_free_ratio": "Free share of the file system of the Nix store.",
    "store_free_inodes_ratio": "Free share of the inodes of that file system.",
    "roots": "Garbage collection roots of flox-node: payloads, cached environments, pods.",
    "sandboxes": "Flox pods running.",
}


class Counted(Protocol):
    """What the loop has counted."""

    restarts: int
    rollbacks: int
    repairs: int
    drifts: int
    failures: dict[str, int]
    phases: dict[str, float]
    placed_bytes: float


def exposition(state: NodeState, seen: Seen, counted: Counted) -> bytes:
    """The page that /metrics answers with."""
    registry = CollectorRegistry()
    registry.register(_Families(_families(state, seen, counted)))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(state: NodeState, seen: Seen, counted: Counted) -> Iterator[Metric]:
    labels = {"version": __version__, "platform": state.platform, **state.versions}
    info = GaugeMetricFamily("flox_node_info", "What runs here; always 1.", labels=list(labels))
    info.add_metric(list(labels.values()), 1)
    yield info
    yield GaugeMetricFamily("flox_node_handler_live", "Whether containerd serves the handler flox.", value=state.live)
    reasons = GaugeMetricFamily("flox_node_reason", "1 for the reason that holds now.", labels=["reason"])
    for reason in Reason:
        reasons.add_metric([reason], reason is state.reason)
    yield reasons
    yield GaugeMetricFamily("flox_node_drift", "Things that are not as the receipt says.", value=seen.drift)
    for name, what, value in (
        ("restarts", "Restarts of containerd by this pod.", counted.restarts),
        ("rollbacks", "Changes of containerd's configuration that were taken back.", counted.rollbacks),
        ("drifts", "Times the node was found changed.", counted.drifts),
        ("repairs", "Times it was repaired.", counted.repairs),
    ):
        yield CounterMetricFamily(f"flox_node_{name}", what, value=value)
    failures = CounterMetricFamily("flox_node_failures", "Failed runs by reason.", labels=["reason"])
    for reason_, count in counted.failures.items():
        failures.add_metric([reason_], count)
    yield failures
    phases = GaugeMetricFamily("flox_node_install_seconds", "Seconds of the last install by action.", labels=["action"])
    for kind, seconds in counted.phases.items():
        phases.add_metric([kind], seconds)
    yield phases
    yield GaugeMetricFamily(
        "flox_node_install_placed_bytes", "Bytes that the last install put into the store.", value=counted.placed_bytes
    )
    for name, what in _STORE.items():
        if name in seen.gauges:
            yield GaugeMetricFamily(f"flox_node_{name}", what, value=seen.gauges[name])
