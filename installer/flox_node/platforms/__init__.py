"""The platforms: what there is, where its things lie, and where a handler has to be registered there for good.

A platform is a module of this package that says `PLATFORM = Platform(...)` (or `PLATFORMS`); it is found by being here.
All that knows a distribution by name asks this table: which containerd and which kubelet run (`containerd.live`), where
tokens of pods lie (`environments`), what a support bundle holds, whose doing a change is, what the doctor looks at
(`plan`). Which of them a node is, `plan.detect` finds out.
"""

from flox_node.platforms.platform import (
    DEFAULT_SOCKET,
    LIVE,
    Layer,
    Platform,
    Refusal,
    Renderer,
    Sign,
    SignKind,
    refused,
)
from flox_node.platforms.registry import (
    all_platforms,
    by_name,
    facts,
    kubelet_holder,
)

__all__ = [
    "DEFAULT_SOCKET",
    "LIVE",
    "Layer",
    "Platform",
    "Refusal",
    "Renderer",
    "Sign",
    "SignKind",
    "all_platforms",
    "by_name",
    "facts",
    "kubelet_holder",
    "refused",
]
