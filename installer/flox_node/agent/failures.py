"""From how a command ended to what is told about the node, and when it is tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from flox_node.agent.children import Ended
from flox_node.kube.names import Happening, Reason

_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Failure:
    """How a failure is told. The next try comes after `first_s` seconds, doubled with each further failure."""

    reason: Reason
    first_s: float
    happening: Happening | None = None

    def retry_after(self, failures: int) -> float:
        """Seconds until the next try after so many failures in a row."""
        return float(min(_LONGEST_S, self.first_s * 2 ** min(failures - 1, 10)))


_FAILURES = {
    # A refusal is final: the node is not touched, and only another node or other settings change that.
    "refused": Failure(Reason.REFUSED, _LONGEST_S, Happening.REFUSED),
    # Each try restarts containerd twice: it is worth one only now and then.
    "rolled-back": Failure(Reason.ROLLED_BACK, 600.0, Happening.ROLLED_BACK),
    "restart-budget": Failure(Reason.BUDGET_SPENT, 300.0, Happening.FAILED),
    "busy": Failure(Reason.BUSY, 15.0),
    "in-use": Failure(Reason.IN_USE, 15.0),
    "corrupt": Failure(Reason.CORRUPT, 300.0, Happening.FAILED),
    "outside": Failure(Reason.FAILED, 15.0, Happening.FAILED),
    "usage": Failure(Reason.INVALID_SETTINGS, 300.0),
}
_BUG = Failure(Reason.BUG, 300.0, Happening.FAILED)


def of(ended: Ended) -> Failure:
    """What a command that did not end with 0 means."""
    return _FAILURES.get(ended.error, _BUG)
