"""The platforms: what a node is, by signs that agree, and where a handler has to be registered there for good.

A platform is a module of this package that says `PLATFORM = Platform(...)` (or `PLATFORMS`); it is found by being here.
"""

from flox_node.plan.platforms.detect import Detection, NodeFacts, detect, gather, recognise
from flox_node.plan.platforms.platform import Layer, Platform, Refusal, Sign, SignKind
from flox_node.plan.platforms.registry import all_platforms, by_name

__all__ = [
    "Detection",
    "Layer",
    "NodeFacts",
    "Platform",
    "Refusal",
    "Sign",
    "SignKind",
    "all_platforms",
    "by_name",
    "detect",
    "gather",
    "recognise",
]
