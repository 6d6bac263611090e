"""Bring a generation's closure into the store, rooted: what a fetch does, once for all who wait.

read       the generation's lock out of its floxmeta repository; refuse what a node does not take
fetch      all its packages from binary caches, building forbidden
build      the environment out of them, by the Flox CLI
publish    a root, and then the entry of the index
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Protocol

from flox_node.environments import closure, flox_cli, index, lock, locks, roots, substitute, work
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import BuildFailedError, NotBuiltError, NotTrustedError
from flox_node.environments.floxmeta import Floxmeta
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.errors import CorruptError

if TYPE_CHECKING:
    from flox_node.environments.flox_cli import Built
    from flox_node.environments.floxmeta import Generation


class Telling(Protocol):
    """Who is told how far a realisation is."""

    def step(self, name: str) -> None:
        """One of the steps above begins."""
        ...

    def bytes(self, done: int, expected: int) -> None:
        """How many unpacked bytes came, of how many."""
        ...


def realise(question: Question, access: Access, deadline: Deadline, telling: Telling) -> Resolution:
    """Realise the generation that a question asks for; the caller holds the environment's lock.

    Killed at any point, the next call goes on from what the store has by then.

    Raises:
        FloxNodeError: one of `errors`; CorruptError: the node's payload is damaged.
    """
    policy, paths, reference = access.policy, access.paths, question.reference
    name = index.digest(question.hub, reference.environment)
    began = time.monotonic()
    with contextlib.ExitStack() as held:
        with work.private_folder(name, paths) as folder:
            env = flox_cli.private_environment(folder, policy, token=access.token, ca_file=access.ca_file)
            telling.step("read")
            meta = Floxmeta(program("git", paths), f"{folder}/floxmeta", env, deadline)
            generation = meta.read(reference, policy.git_url)
            # What was read counts from here on, wherever the branch's tip was before.
            question = Question(question.hub, reference, generation.commit, question.mode, question.system)
            found = index.lookup(question, paths)
            if found is not None:
                return found
            lock.check(generation.lock, question.system)
            telling.step("fetch")
            packages = lock.packages(generation.lock, question.system)
            held.enter_context(roots.hold(name, [path for package in packages for path in package.paths], paths))
            tokenless = {key: value for key, value in env.items() if key != "FLOX_FLOXHUB_TOKEN"}
            nix = substitute.Nix(nix_program(paths), tokenless, deadline)
            try:
                substitute.fetch(packages, nix, policy.realise, paths, telling.bytes)
            except (NotBuiltError, NotTrustedError):
                if not policy.nix.builds:
                    raise  # else Flox builds what is missing
            substitute.forget_halves(lock.packages(generation.lock, question.system, published=True), nix, paths)
            telling.step("build")
            exact = Reference(reference.owner, reference.name, generation.number)
            built = flox_cli.pull(
                exact,
                folder=folder,
                env=env,
                token=access.token,
                system=question.system,
                deadline=deadline,
                paths=paths,
            )
            store_path = _store_path(built, generation, question.mode)
            telling.step("publish")
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
        index.record(question, resolution, paths, took_s=time.monotonic() - began)
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


def program(name: str, paths: Paths) -> str:
    """A program of the payload, by the name of its entry point.

    Raises:
        CorruptError: the payload in force names no such program.
    """
    try:
        with open(paths.payload_manifest, "rb") as file:
            found = json.loads(file.read())["entry_points"][name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptError(
            f"the node's payload names no program {name} ({paths.payload_manifest}).",
            remedy="Run `flox-node install` on the node again.",
        ) from error
    return paths.on_disk(str(found))


def nix_program(paths: Paths) -> str:
    """The payload's `nix`; see `program`."""
    return program("nix-store", paths).removesuffix("nix-store") + "nix"  # one program under two names
