"""From a pod's request to the environment that it gets: may this token have it, is it here, else wait for its fetch.

One request to FloxHub with the pod's own token says both: the hub shows a branch only to whoever may read it, and an
equal commit is the build that is here already.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flox_node.environments import floxhub, grants, index
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import (
    AccessDeniedError,
    EnvironmentNotFoundError,
    NetworkError,
    NotAllowedError,
)
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.protocol import Request
from flox_node.state.policy import Policy


@dataclass(frozen=True)
class Resolved:
    """What a pod gets. `warning` is a line for the node's log, `phases` are milliseconds by what they went into."""

    resolution: Resolution
    warning: str | None
    phases: dict[str, int]


def system() -> str:
    """This node's system in Nix' words: "x86_64-linux", "aarch64-linux"."""
    return f"{os.uname().machine}-linux"


def resolve(request: Request, access: Access, deadline: Deadline) -> Resolved:
    """Say which environment a pod gets, once it is on the node. Any number of pods may ask at once.

    Raises:
        FloxNodeError: one of `errors`; CorruptError: the node's payload is damaged.
    """
    policy, reference = access.policy, request.reference
    check_allowed(request, policy)
    grant = grants.Grant(policy.git_url, reference, request.mode, system(), access.token)
    began = time.monotonic()
    try:
        commit = floxhub.tip(
            reference,
            git_url=policy.git_url,
            token=access.token,
            deadline=Deadline.after(deadline.left() / 2),  # of a hub that dribbles, too, there is more to say then
            ca_file=access.ca_file,
            network=policy.network,
        )
    except NetworkError as error:
        # Beyond the grace, and for whom it was never granted, the hub's silence is a refusal.
        granted = grants.find(grant, access.paths, policy.realise.grace_s)
        if granted is None:
            raise
        warning = f"{error.cause} The pod gets what its token was granted {granted.age_s:.0f} s ago."
        _tell(request, "hub-unreachable", warning, access.paths)
        return Resolved(granted.resolution, warning, {"hub": _since(began)})
    except (AccessDeniedError, EnvironmentNotFoundError):
        grants.forget(grant, access.paths)
        raise
    asked = time.monotonic()
    question = Question(policy.git_url, reference, commit, request.mode, grant.system)
    resolution = index.lookup(question, access.paths)
    phases = {"hub": round((asked - began) * 1000)}
    if resolution is None:
        from flox_node.environments import fetch  # the usual call finds its answer in the index

        def tell(how_far: str) -> None:
            _tell(request, "fetching", how_far, access.paths)

        resolution = fetch.join(question, access, deadline, tell)
        phases["fetch"] = _since(asked)
    grants.record(grant, resolution, access.paths)
    return Resolved(resolution, None, phases)


def check_allowed(request: Request, policy: Policy) -> None:
    """Refuse what the policy does not allow pods of this namespace.

    Raises:
        NotAllowedError: owner or mode.
    """
    rules, owner = policy.in_namespace(request.namespace), request.reference.owner
    if not any(fnmatchcase(owner, pattern) for pattern in rules.owners):
        raise NotAllowedError(f"the node's policy does not allow owner {owner} in namespace {request.namespace}.")
    if request.mode not in rules.modes:
        raise NotAllowedError(f"the node's policy does not allow mode {request.mode} in namespace {request.namespace}.")


def _tell(request: Request, kind: str, message: str, paths: Paths) -> None:
    from flox_node.environments import notices  # the usual pod is told nothing

    text = f"environment {request.reference}: {message}"
    notices.tell(request.namespace, request.pod_name, request.pod_uid, kind, text, paths)


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
