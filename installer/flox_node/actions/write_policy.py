"""The node's policy: what an administrator wants of it, and the inner runtime, which an install finds out by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flox_node.actions.base import Action, Before, Gap, Kept, Owned, Progress, register
from flox_node.actions.in_use import bundles_with_shim, shim_in_use
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
class WritePolicy(Action[Gap]):
    """Set `inner_runtime` in the policy; whatever else an administrator wrote there stays, unless `policy` replaces it.

    `policy` is the text of a policy.toml. It is not recorded: `flox-node policy apply` may change the node's later.
    """

    kind: ClassVar[str] = "write-policy"

    inner_runtime: str
    policy: str | None = field(default=None, metadata={"recorded": False})

    def describe(self) -> str:
        return f"name {self.inner_runtime} as the inner runtime of new containers in {POLICY}"

    def inspect(self, host: Host) -> Gap | None:
        policy = _policy(host.files)
        if policy is None:
            return Gap(f"{POLICY} is not there", (POLICY,))
        wanted = self._wanted(host)
        if policy.get("inner_runtime") != wanted["inner_runtime"]:
            return Gap(f"{POLICY} names {policy.get('inner_runtime')} as the inner runtime", (POLICY,))
        return None if policy == wanted else Gap(f"{POLICY} is not the policy that was given", (POLICY,))

    def capture(self, host: Host, gap: Gap | None, known: Before | None) -> Before | None:
        return None if host.files.lexists(POLICY) else {"created": True}

    def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
        wanted = self._wanted(host)
        former = (_policy(host.files) or {}).get("inner_runtime")
        remember_former(host.files, wanted["inner_runtime"])
        if former not in (None, wanted["inner_runtime"]) and (tasks := bundles_with_shim(host)):
            progress(f"{len(tasks)} running containers and sandboxes keep {former} as their inner runtime")
        host.files.write_atomic(POLICY, json.dumps(wanted, indent=1).encode() + b"\n", 0o644)

    def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> Kept | None:
        """Remove the policy on a purge, if an install made it and no running container's shim reads it any more."""
        if purge and before.get("created"):
            if in_use := shim_in_use(host):
                return Kept(in_use)
            host.files.remove(POLICY)
        return None

    def preview_revert(self, host: Host, before: Before, *, purge: bool) -> tuple[str, Kept | None]:
        return "", None if purge or not before.get("created") else Kept(f"only --purge removes {POLICY}", waits=False)

    def owns(self, host: Host, before: Before) -> Iterable[Owned]:
        yield Owned(POLICY)

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
