"""The `flox.dev/*` annotations of a pod, judged without knowing any environment."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

PREFIX = "flox.dev/"
ENVIRONMENT = "flox.dev/environment"
ANNOTATIONS = (
    ENVIRONMENT,
    "flox.dev/activate-mode",
    "flox.dev/disable-metrics",
    "flox.dev/nix-mutable",
    "flox.dev/skip-containers",
    "flox.dev/skip-containers-exec",
)
_HANDLER = "flox"
_FORM = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[1-9][0-9]*)?")


def annotation_faults(annotations: Mapping[str, str], handler: str) -> list[str]:
    """What is wrong with a pod's `flox.dev/*` annotations under its handler (or runtime class), in words."""
    ours = {key: value for key, value in annotations.items() if key.startswith(PREFIX)}
    if not ours and handler != _HANDLER:
        return []
    faults = []
    for key in sorted(ours.keys() - set(ANNOTATIONS)):
        near = difflib.get_close_matches(key, ANNOTATIONS, 1, 0.75)
        faults.append(f"unknown annotation {key}" + (f", meant is perhaps {near[0]}" if near else ""))
    environment = ours.get(ENVIRONMENT)
    if handler != _HANDLER:
        return [*faults, f"has {ENVIRONMENT} but not runtimeClassName {_HANDLER}"] if environment else faults
    if environment is None:
        faults.append(f"has runtimeClassName {_HANDLER} but no {ENVIRONMENT}")
    elif not _FORM.fullmatch(environment):
        right = environment.replace("@", ":", 1)
        hint = f"write {right}" if _FORM.fullmatch(right) else "the form is owner/name or owner/name:3"
        faults.append(f"{ENVIRONMENT} is {environment[:120]!r}: {hint}")
    return faults
