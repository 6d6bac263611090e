"""A plan in a file: what was shown and agreed to is what is installed, or nothing is.

It holds what an install would do, how the node was when it said so, and the settings, but not the payload: only its
id and where it was. An install of it plans anew and refuses where the two differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.errors import RefusedError, UsageError
from flox_node.host import Host
from flox_node.plan.steps import Outcome, StepResult
from flox_node.settings import Settings, from_json

SCHEMA_VERSION = 1
_NEW_PLAN = "Make a new plan with `flox-node plan -o FILE` and look at it."


@dataclass(frozen=True)
class SavedPlan:
    """What a plan said of which node.

    `payload` is where the payload was, "" where that is nobody's business (a URL with a query may hold a secret).
    `steps` are key, outcome, reason and diff of each action; `seen` the digests of the files that would be written
    ("" for one that is not there).
    """

    machine_id: str
    payload_id: str
    payload: str
    settings: Settings
    platform: str
    containerd: str
    steps: tuple[tuple[str, str, str, str], ...]
    seen: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The plan as its file holds it."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def parse(data: bytes) -> SavedPlan:
    """Read the file of a plan.

    Raises:
        UsageError: it is none, or one of a newer flox-node.
    """
    try:
        body = json.loads(data)
        if not isinstance(body, dict) or "schema_version" not in body:
            raise UsageError("This is no plan of flox-node.", remedy=_NEW_PLAN)
        if body.pop("schema_version") != SCHEMA_VERSION:
            raise UsageError("The plan was made by another flox-node.", remedy=_NEW_PLAN)
        settings, steps, seen = from_json(body.pop("settings")), body.pop("steps"), body.pop("seen")
        texts = [*body.values(), *seen.keys(), *seen.values(), *(word for step in steps for word in step)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is none")
        return SavedPlan(**body, settings=settings, steps=tuple(tuple(step) for step in steps), seen=seen)
    except UsageError as error:
        raise UsageError(
            f"{error.cause.removeprefix('settings.toml: ').rstrip('.')}: this plan cannot be used.", remedy=_NEW_PLAN
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"This is no plan of flox-node ({error}).", remedy=_NEW_PLAN) from error


def saved(
    host: Host,
    *,
    payload_id: str,
    payload: str,
    settings: Settings,
    platform: str,
    containerd: str,
    steps: tuple[StepResult, ...],
) -> SavedPlan:
    """What a plan says now of this node."""
    return SavedPlan(
        machine_id=(host.files.read_optional("/etc/machine-id") or b"").decode(errors="replace").strip(),
        payload_id=payload_id,
        payload="" if "?" in payload else payload,
        settings=dataclasses.replace(settings, digest=""),
        platform=platform,
        containerd=containerd,
        steps=tuple((step.key, str(step.outcome), step.reason, step.diff) for step in steps),
        seen={
            path: _digest(host.files.read_optional(path))
            for step in steps
            if step.outcome is Outcome.NEEDED
            for path in step.paths
            if not host.files.is_dir(path)
        },
    )


def require_same(agreed: SavedPlan, now: SavedPlan) -> None:
    """Make sure that an install does what the plan said, to the node that it saw.

    Raises:
        RefusedError: what is another thing now.
    """
    for what in ("machine_id", "payload_id", "platform", "containerd"):
        was, is_now = getattr(agreed, what), getattr(now, what)
        if was != is_now:
            raise RefusedError(
                f"The plan was made with {what.replace('_', ' ')} {was or 'none'}, and now it is {is_now or 'none'}.",
                remedy=_NEW_PLAN,
            )
    different = [path for path, digest in now.seen.items() if agreed.seen.get(path) != digest]
    if different:
        raise RefusedError(f"{different[0]} is not what the plan saw.", remedy=_NEW_PLAN)
    for was_step, step in zip(agreed.steps, now.steps, strict=False):
        if was_step != step:
            raise RefusedError(f"The plan says another thing of {step[0]} than is needed now.", remedy=_NEW_PLAN)
    if len(agreed.steps) != len(now.steps):
        raise RefusedError("The plan has other steps than are needed now.", remedy=_NEW_PLAN)


def _digest(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()
