"""All platforms, found by being modules of this package."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from flox_node.errors import UsageError
from flox_node.plan.platforms.platform import Platform

_MACHINERY = frozenset({"detect", "platform", "registry"})


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
