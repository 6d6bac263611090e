"""The one setting of the policy that an install finds out by itself: the node's inner runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from flox_node.actions.base import Before, Kept, Missing, Progress, register
from flox_node.actions.in_use import shim_in_use
from flox_node.errors import CorruptError
from flox_node.host import Host
from flox_node.state.policy import PATH as POLICY


@register
@dataclass(frozen=True)
class WritePolicy:
    """Set `inner_runtime` in the policy; whatever else an administrator wrote there stays."""

    kind: ClassVar[str] = "write-policy"

    inner_runtime: str

    @property
    def key(self) -> str:
        """See Action."""
        return self.kind

    def describe(self) -> str:
        """See Action."""
        return f"name {self.inner_runtime} as the inner runtime in {POLICY}"

    def inspect(self, host: Host) -> Missing | None:
        """See Action."""
        policy = _policy(host)
        if policy is None:
            return Missing(f"{POLICY} is not there")
        if policy.get("inner_runtime") != self.inner_runtime:
            return Missing(f"{POLICY} names {policy.get('inner_runtime')} as the inner runtime")
        return None

    def preview(self, host: Host) -> str:
        """See Action."""
        return ""

    def capture(self, host: Host) -> Before | None:
        """See Action."""
        return None if host.files.lexists(POLICY) else {"created": True}

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action."""
        policy = {"schema_version": 1, **(_policy(host) or {}), "inner_runtime": self.inner_runtime}
        host.files.write_atomic(POLICY, json.dumps(policy, indent=1).encode() + b"\n", 0o644)

    def revert(self, host: Host, before: Before, *, purge: bool) -> Kept | None:
        """Remove the policy on a purge, if an install made it and no running container's shim reads it any more."""
        host.files.discard_leftover(POLICY)
        if purge and before.get("created"):
            if in_use := shim_in_use(host):
                return Kept(in_use)
            host.files.remove(POLICY)
        return None


def _policy(host: Host) -> dict[str, Any] | None:
    data = host.files.read_optional(POLICY)
    if data is None:
        return None
    try:
        policy = json.loads(data)
        if not isinstance(policy, dict):
            raise TypeError("not a JSON object")
    except (TypeError, ValueError) as error:
        raise CorruptError(
            f"{POLICY} is damaged: {error}.",
            remedy="Write it anew with `flox-node policy apply FILE.toml`, or remove it.",
        ) from error
    return policy
