"""The node's policy: what an administrator wants of it, and the inner runtime, which an install finds out by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flox_node.actions.base import Before, Kept, Missing, Progress, register
from flox_node.actions.in_use import shim_in_use
from flox_node.errors import CorruptError
from flox_node.host import Host, HostFiles
from flox_node.state import policy as policies
from flox_node.state import policy_text
from flox_node.state.policy import PATH as POLICY

# The inner runtimes that earlier policies of this boot named, one path a line. A container keeps the runtime that
# created it: the shim looks here for that of a container in whose bundle an older shim left no word of it.
FORMER_RUNTIMES = "/run/flox-node/former-inner-runtimes"


@register
@dataclass(frozen=True)
class WritePolicy:
    """Set `inner_runtime` in the policy; whatever else an administrator wrote there stays, unless `policy` replaces it.

    `policy` is the text of a policy.toml. It is not recorded: `flox-node policy apply` may change the node's later.
    """

    kind: ClassVar[str] = "write-policy"

    inner_runtime: str
    policy: str | None = field(default=None, metadata={"recorded": False})

    @property
    def key(self) -> str:
        """See Action."""
        return self.kind

    def describe(self) -> str:
        """See Action."""
        return f"name {self.inner_runtime} as the inner runtime of new containers in {POLICY}"

    def inspect(self, host: Host) -> Missing | None:
        """See Action."""
        policy = _policy(host.files)
        if policy is None:
            return Missing(f"{POLICY} is not there")
        wanted = self._wanted(host)
        if policy.get("inner_runtime") != wanted["inner_runtime"]:
            return Missing(f"{POLICY} names {policy.get('inner_runtime')} as the inner runtime")
        return None if policy == wanted else Missing(f"{POLICY} is not the policy that was given")

    def preview(self, host: Host) -> str:
        """See Action."""
        return ""

    def capture(self, host: Host) -> Before | None:
        """See Action."""
        return None if host.files.lexists(POLICY) else {"created": True}

    def execute(self, host: Host, progress: Progress) -> None:
        """See Action."""
        wanted = self._wanted(host)
        remember_former(host.files, wanted["inner_runtime"])
        host.files.write_atomic(POLICY, json.dumps(wanted, indent=1).encode() + b"\n", 0o644)

    def revert(self, host: Host, before: Before, *, purge: bool) -> Kept | None:
        """Remove the policy on a purge, if an install made it and no running container's shim reads it any more."""
        host.files.discard_leftover(POLICY)
        if purge and before.get("created"):
            if in_use := shim_in_use(host):
                return Kept(in_use)
            host.files.remove(POLICY)
        return None

    def _wanted(self, host: Host) -> dict[str, Any]:
        if self.policy is None:
            return {
                "schema_version": policies.SCHEMA_VERSION,
                **(_policy(host.files) or {}),
                "inner_runtime": self.inner_runtime,
            }
        given: dict[str, Any] = json.loads(policy_text.applied(self.policy, None))
        return {"inner_runtime": self.inner_runtime, **given}


def remember_former(files: HostFiles, inner_runtime: str | None) -> None:
    """Let running containers be found when the policy is about to name another inner runtime."""
    former = (_policy(files) or {}).get("inner_runtime")
    if not isinstance(former, str) or former == inner_runtime:
        return
    known = (files.read_optional(FORMER_RUNTIMES) or b"").decode().splitlines()
    if former not in known:
        files.mkdir("/run/flox-node", 0o755)
        files.write_atomic(FORMER_RUNTIMES, "".join(f"{line}\n" for line in (*known, former)).encode(), 0o600)


def _policy(files: HostFiles) -> dict[str, Any] | None:
    data = files.read_optional(POLICY)
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
