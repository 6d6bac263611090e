"""The names that users, manifests, the agent and the cluster commands share. They are API: none is ever renamed."""

from __future__ import annotations

from enum import StrEnum

from flox_node.names import ENABLED as ENABLED
from flox_node.names import HANDLER
from flox_node.names import NOT_READY as NOT_READY

NAME = "flox-node"
"""The DaemonSet, its service account, its roles, its ConfigMap and the field manager of what we apply."""
NAMESPACE = "flox-node"
RUNTIME_CLASS = HANDLER
PREFIX = "flox.dev/"
"""Every label and annotation of ours begins with it; the admission policy lets the reporter touch no other."""
EXCLUDE = "flox.dev/exclude"
"""A node with this label, whatever its value, is left alone."""
CONDITION = "FloxRuntimeReady"
SLOT_PREFIX = "flox-node-slot-"
"""The leases that pace restarts: flox-node-slot-0, flox-node-slot-1, ..."""
VERSION_ANNOTATIONS = {
    "payload": "flox.dev/payload",
    "shim": "flox.dev/shim-version",
    "flox": "flox.dev/flox-version",
    "containerd": "flox.dev/containerd-version",
}
"""Which version runs on a node, by what of it; "flox.dev/platform" names what the node is."""
PLATFORM_ANNOTATION = "flox.dev/platform"


class Phase(StrEnum):
    """Where a node stands. `settled` ones need nothing more to happen."""

    WAITING = "waiting"
    WORKING = "working"
    FAILED = "failed"
    CONVERGED = "converged"
    REFUSED = "refused"
    UNINSTALLED = "uninstalled"

    @property
    def settled(self) -> bool:
        """Whether the node is what it was meant to be, or finally is not: what the pod's readiness means."""
        return self in (Phase.CONVERGED, Phase.REFUSED, Phase.UNINSTALLED)


class Reason(StrEnum):
    """The reasons of the condition `FloxRuntimeReady`, and of the events; the list is fixed."""

    INSTALLED = "Installed"  # status True; every other reason has status False
    WAITING = "WaitingForSlot"
    INSTALLING = "Installing"
    NOT_LIVE = "HandlerNotLive"
    REFUSED = "Refused"
    ROLLED_BACK = "RolledBack"
    BUDGET_SPENT = "RestartBudgetSpent"
    BUSY = "Busy"
    CORRUPT = "Corrupt"
    FAILED = "Failed"
    INVALID_SETTINGS = "InvalidSettings"
    IN_USE = "InUse"
    UNINSTALLING = "Uninstalling"
    UNINSTALLED = "Uninstalled"
    BUG = "Bug"

    @property
    def phase(self) -> Phase:
        """Where a node stands for which this is the reason."""
        return _PHASES.get(self, Phase.FAILED)


_PHASES = {
    Reason.INSTALLED: Phase.CONVERGED,
    Reason.WAITING: Phase.WAITING,
    Reason.INSTALLING: Phase.WORKING,
    Reason.UNINSTALLING: Phase.WORKING,
    Reason.REFUSED: Phase.REFUSED,
    Reason.UNINSTALLED: Phase.UNINSTALLED,
}


class Happening(StrEnum):
    """The reasons of events about a node."""

    INSTALLED = "FloxInstalled"
    UPGRADED = "FloxUpgraded"
    REPAIRED = "FloxRepaired"
    ROLLED_BACK = "FloxRolledBack"
    REFUSED = "FloxRefused"
    FAILED = "FloxFailed"
    UNINSTALLED = "FloxUninstalled"


class PodHappening(StrEnum):
    """The reasons of events about a pod."""

    FETCHING = "FloxFetching"
    HOOK_FAILED = "FloxHookFailed"
    HUB_UNREACHABLE = "FloxHubUnreachable"
