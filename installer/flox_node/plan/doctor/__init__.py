"""`flox-node doctor`: what of a node keeps Flox pods from running, each with its cause and what to do."""

from flox_node.plan.doctor.check import Finding, State
from flox_node.plan.doctor.examination import CHECKS, examine

__all__ = ["CHECKS", "Finding", "State", "examine"]
