"""Which actions bring a node to the desired state, and the runs that carry them out or take them back."""

from flox_node.plan.planner import plan_install
from flox_node.plan.runs import Preview, agreement, install, preview, preview_uninstall, uninstall
from flox_node.plan.steps import Outcome, StepResult

__all__ = [
    "Outcome",
    "Preview",
    "StepResult",
    "agreement",
    "install",
    "plan_install",
    "preview",
    "preview_uninstall",
    "uninstall",
]
