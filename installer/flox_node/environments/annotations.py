"""The `flox.dev/*` annotations of a pod, judged without knowing any environment or policy.

The shim judges with `shim/internal/pod`: the same grammar, the same verdicts, nearly the same words. What both say of
an annotation stands in tests/unit/records/annotations.*.json, which the tests of both read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flox_node.environments.errors import BadRequestError
from flox_node.environments.reference import Reference
from flox_node.names import HANDLER

PREFIX = "flox.dev/"
ENVIRONMENT = "flox.dev/environment"
ACTIVATE_MODE = "flox.dev/activate-mode"
DISABLE_METRICS = "flox.dev/disable-metrics"
NIX_MUTABLE = "flox.dev/nix-mutable"
ONLY_CONTAINERS = "flox.dev/only-containers"
SKIP_CONTAINERS = "flox.dev/skip-containers"
SKIP_CONTAINERS_EXEC = "flox.dev/skip-containers-exec"
ANNOTATIONS = (
    ENVIRONMENT,
    ACTIVATE_MODE,
    DISABLE_METRICS,
    NIX_MUTABLE,
    ONLY_CONTAINERS,
    SKIP_CONTAINERS,
    SKIP_CONTAINERS_EXEC,
)
_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,127}")


@dataclass(frozen=True)
class Wishes:
    """What a pod asks for. `faults` keep it from being started, `warnings` name what has no effect."""

    reference: Reference | None
    mode: str
    nix_mutable: bool
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    _lists: Mapping[str, tuple[str, ...]]

    def skipped(self, container: str) -> bool:
        """Whether the pod wants a container left as its image says."""
        only = self._lists[ONLY_CONTAINERS]
        return self._named(SKIP_CONTAINERS, container) or (bool(only) and not self._named(ONLY_CONTAINERS, container))

    def exec_skipped(self, container: str) -> bool:
        """Whether the pod wants commands that are executed in a container outside the environment."""
        return self._named(SKIP_CONTAINERS_EXEC, container)

    def _named(self, key: str, container: str) -> bool:
        return any(_pattern(entry).fullmatch(container) for entry in self._lists[key] if _PATTERN.fullmatch(entry))


def judge(annotations: Mapping[str, str]) -> Wishes:
    """What the annotations of a pod of the handler `flox` say, and what is wrong with them."""
    faults: list[str] = []
    reference = _reference(annotations.get(ENVIRONMENT, ""), faults)
    mode = annotations.get(ACTIVATE_MODE, "")
    if mode not in ("", "run", "dev"):
        faults.append(f"the annotation {ACTIVATE_MODE} holds {_shown(mode)}; it is `run` or `dev`")
    mutable = annotations.get(NIX_MUTABLE, "")
    if mutable not in ("", "true", "false"):
        faults.append(f"the annotation {NIX_MUTABLE} holds {_shown(mutable)}; it is `true` or `false`")
    lists = {
        key: _entries(annotations.get(key, "")) for key in (ONLY_CONTAINERS, SKIP_CONTAINERS, SKIP_CONTAINERS_EXEC)
    }
    return Wishes(
        reference, mode or "run", mutable == "true", tuple(faults), tuple(_warnings(annotations, lists)), lists
    )


def annotation_faults(annotations: Mapping[str, str], handler: str) -> list[str]:
    """What is wrong with a pod's `flox.dev/*` annotations under its handler (or runtime class), in words."""
    if handler == HANDLER:
        wishes = judge(annotations)
        return [*wishes.warnings, *wishes.faults]
    if not any(key.startswith(PREFIX) for key in annotations):
        return []
    without = [f"has {ENVIRONMENT} but not runtimeClassName {HANDLER}"] if annotations.get(ENVIRONMENT) else []
    return [*_unknown(annotations), *without]


def _reference(value: str, faults: list[str]) -> Reference | None:
    if not value:
        faults.append(
            f"the pod has no annotation {ENVIRONMENT}: add for example `{ENVIRONMENT}: owner/name`, or "
            f"`{ENVIRONMENT}: owner/name:3` for generation 3, to its metadata.annotations"
        )
        return None
    try:
        return Reference.parse(value)
    except BadRequestError as error:
        faults.append(f"the annotation {ENVIRONMENT}: {error.cause} The right form is owner/name or owner/name:3")
        return None


def _warnings(annotations: Mapping[str, str], lists: Mapping[str, tuple[str, ...]]) -> list[str]:
    warnings = _unknown(annotations)
    metrics = annotations.get(DISABLE_METRICS, "")
    if metrics not in ("", "true", "false"):
        warnings.append(
            f"the annotation {DISABLE_METRICS} holds {_shown(metrics)}; it is `true` or `false`, and no metrics are "
            "sent in either case"
        )
    for key, entries in lists.items():
        for entry in entries:
            if not _PATTERN.fullmatch(entry):
                warnings.append(f"the annotation {key} holds {_shown(entry)}, which can be no container's name")
    return warnings


def _unknown(annotations: Mapping[str, str]) -> list[str]:
    warnings = []
    for key in sorted(annotations):
        if key.startswith(PREFIX) and key not in ANNOTATIONS:
            near = difflib.get_close_matches(key, ANNOTATIONS, 1, 0.75)
            perhaps = f", meant is perhaps {near[0]}" if near else ""
            warnings.append(f"the annotation {_shown(key)} is unknown{perhaps}")
    return warnings


def _entries(text: str) -> tuple[str, ...]:
    return tuple(entry for entry in (part.strip() for part in text.split(",")) if entry)


def _pattern(glob: str) -> re.Pattern[str]:
    """`*` is any text and `?` one character; nothing else is special, other than for `fnmatch`."""
    return re.compile(re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _shown(value: str) -> str:
    text = ascii(value if len(value) <= 128 else value[:128] + "...")[1:-1]
    return '"' + text.replace('"', r"\"") + '"'
