"""From a pod's request to a closure in the store, and rooted.

resolve    one request to FloxHub with the pod's own token: may it, and which commit is it
look up    the same question was answered before, and everything is still there
realise    under the environment's lock: read the generation, refuse what is not supported, pull it, root it
"""

from __future__ import annotations

import contextlib
import json
import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from flox_node.environments import floxhub, index, locks, roots, work
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import BuildFailedError, NotAllowedError
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.protocol import Request
from flox_node.environments.reference import Reference
from flox_node.errors import CorruptError
from flox_node.state.policy import Policy

if TYPE_CHECKING:
    from flox_node.environments.flox_cli import Built
    from flox_node.environments.floxmeta import Generation


def system() -> str:
    """This node's system in Nix' words: "x86_64-linux", "aarch64-linux"."""
    return f"{os.uname().machine}-linux"


def realise(request: Request, *, policy: Policy, paths: Paths, token: str | None, deadline: Deadline) -> Resolution:
    """Make the environment that a pod asks for ready for its containers, and say which one it is.

    Any number of pods may ask at once: one of them does the work, the others wait for it. Killed at any point, the next
    call goes on from what the store has by then.

    Raises:
        FloxNodeError: one of `errors`; CorruptError: the node's payload is damaged.
    """
    reference = request.reference
    _check_allowed(request, policy)
    ca_file = next((file for file in paths.ca_files if os.path.exists(file)), None)
    commit = floxhub.tip(reference, git_url=policy.git_url, token=token, deadline=deadline, ca_file=ca_file)
    question = Question(policy.git_url, reference, commit, request.mode, system())
    found = index.lookup(question, paths)
    if found is not None:
        return found
    # One lock per environment, not per question: the branch may move on between the answer of the hub and our reading.
    name = index.digest(policy.git_url, reference.environment)
    with work.locked(name, paths, deadline):
        return index.lookup(question, paths) or _realise(name, question, policy, paths, token, ca_file, deadline)


def _check_allowed(request: Request, policy: Policy) -> None:
    rules, owner = policy.in_namespace(request.namespace), request.reference.owner
    if not any(fnmatchcase(owner, pattern) for pattern in rules.owners):
        raise NotAllowedError(f"the node's policy does not allow owner {owner} in namespace {request.namespace}.")
    if request.mode not in rules.modes:
        raise NotAllowedError(f"the node's policy does not allow mode {request.mode} in namespace {request.namespace}.")


def _realise(
    name: str,
    question: Question,
    policy: Policy,
    paths: Paths,
    token: str | None,
    ca_file: str | None,
    deadline: Deadline,
) -> Resolution:
    # Imported here: the usual call finds its answer in the index and starts no program.
    from flox_node.environments import closure, flox_cli, lock
    from flox_node.environments.floxmeta import Floxmeta

    reference = question.reference
    with contextlib.ExitStack() as held:
        with work.private_folder(name, paths) as folder:
            env = flox_cli.private_environment(folder, policy, token=token, ca_file=ca_file)
            meta = Floxmeta(_program("git", paths), f"{folder}/floxmeta", env, deadline)
            generation = meta.read(reference, policy.git_url)
            # What was read counts from here on, wherever the branch's tip was before.
            question = Question(question.hub, reference, generation.commit, question.mode, question.system)
            found = index.lookup(question, paths)
            if found is not None:
                return found
            lock.check(generation.lock, question.system)
            exact = Reference(reference.owner, reference.name, generation.number)
            built = flox_cli.pull(
                exact, folder=folder, env=env, token=token, system=question.system, deadline=deadline, paths=paths
            )
            store_path = _store_path(built, generation, question.mode)
            key = closure.hash_part(store_path)
            # Equal environments have one root, whatever their names and locks.
            held.enter_context(locks.hold(paths.locks, roots.name_of(key), deadline))
            held.enter_context(roots.added(key, store_path, paths))
            closure.requisites(store_path, paths)
        resolution = Resolution(
            environment=reference.environment,
            generation=generation.number,
            commit=generation.commit,
            mode=question.mode,
            system=question.system,
            store_path=store_path,
        )
        # Last, when the private folder is wiped: whoever finds this does not look for what a killed one left.
        index.record(question, resolution, paths)
    return resolution


def _store_path(built: Built, generation: Generation, mode: str) -> str:
    """The environment that was built, if it is what was checked before."""
    # Only a forced push can change a generation's content between our reading it and Flox' pulling it. What was built
    # then is not what was checked and not what this commit stands for.
    if built.lock.get("packages") != generation.lock.get("packages"):
        raise BuildFailedError(
            f"generation {generation.number} was changed on FloxHub while it was fetched.",
            remedy="The kubelet tries again by itself.",
        )
    store_path = built.store_paths.get(mode)
    if store_path is None:
        raise BuildFailedError(f"Flox said that it succeeded, but built no environment for mode {mode}.")
    return store_path


def _program(name: str, paths: Paths) -> str:
    """A program of the payload, by the name of its entry point."""
    try:
        with open(paths.payload_manifest, "rb") as file:
            program = json.loads(file.read())["entry_points"][name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptError(
            f"the node's payload names no program {name} ({paths.payload_manifest}).",
            remedy="Run `flox-node install` on the node again.",
        ) from error
    return paths.on_disk(str(program))
