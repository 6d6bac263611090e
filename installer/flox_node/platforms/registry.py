"""All platforms, found by being modules of this package, and what is asked of all of them at once."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable

from flox_node.errors import UsageError
from flox_node.platforms.platform import KUBELET, Platform

_MACHINERY = frozenset({"platform", "registry"})


@functools.cache
def all_platforms() -> tuple[Platform, ...]:
    """Every platform, innermost layer first, then by name."""
    package = __name__.rpartition(".")[0]
    found: list[Platform] = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name not in _MACHINERY:
            loaded = importlib.import_module(f"{package}.{module.name}")
            found += getattr(loaded, "PLATFORMS", None) or (loaded.PLATFORM,)
    return tuple(sorted(found, key=lambda platform: (-platform.layer, platform.name)))


def by_name(name: str) -> Platform:
    """The platform that --platform names.

    Raises:
        UsageError: there is none of that name.
    """
    for platform in all_platforms():
        if platform.name == name:
            return platform
    known = ", ".join(sorted(platform.name for platform in all_platforms()))
    raise UsageError(f"There is no platform {name!r}.", remedy=f"Platforms: {known}.")


def facts(tell: Callable[[Platform], Iterable[str]]) -> tuple[str, ...]:
    """What `tell` tells of each platform, each once: all sockets, say. Those of the commonest kind of node come first.

    >>> facts(lambda platform: [platform.socket])[0]
    '/run/containerd/containerd.sock'
    """
    return tuple(dict.fromkeys(fact for platform in reversed(all_platforms()) for fact in tell(platform)))


def kubelet_holder(program: str) -> Platform | None:
    """The platform whose program of this name holds a kubelet; None for the kubelet itself."""
    return next((each for each in all_platforms() if program != KUBELET and program in each.kubelets), None)
