"""`flox-node env list|resolve|realise|prefetch|verify|gc`: the environments of one node, as its pods get them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flox_node.cli.maintenance import gc
from flox_node.cli.node import DEFAULT_ROOT, HostRoot
from flox_node.cli.output import Result, application, command, read_text, say
from flox_node.errors import FloxNodeError

if TYPE_CHECKING:
    from flox_node.environments.access import Access
    from flox_node.environments.protocol import Request
    from flox_node.state.policy import Policy

app = application("Look at the node's environments, and fetch them before pods ask for them.")
command(app, example="flox-node env gc --days 7")(gc)

Wanted = Annotated[str, typer.Argument(help="owner/name, or owner/name:3 for generation 3.")]
Mode = Annotated[str, typer.Option("--mode", help="run or dev, as flox.dev/activate-mode.")]
Namespace = Annotated[str, typer.Option("--namespace", help="Judge by the policy for pods of this namespace.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="A file with a FloxHub token.", show_default="as a pod without a token"),
]

_VERIFY_S = 6 * 3600.0  # every byte is read, and some may be fetched


@command(app, example="flox-node env list")
def list_(host_root: HostRoot = DEFAULT_ROOT) -> Result:
    """Show the environments on this node, the last used first."""
    from flox_node.environments import gc as collection
    from flox_node.environments.paths import Paths

    found = sorted(collection.entries(Paths(_prefix(host_root))), key=lambda entry: -entry.used_at)
    rows = [
        {
            "environment": entry.environment,
            "generation": _generation(entry.file),
            "mode": entry.mode,
            "store_path": entry.store_path,
            "used_at": round(entry.used_at),
        }
        for entry in found
    ]

    def table() -> Iterable[Any]:
        from rich.table import Table

        shown = Table("environment", "generation", "mode", "last used", "store path", box=None)
        for row in rows:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(str(row["used_at"]))))
            shown.add_row(
                *(str(row[key]) for key in ("environment", "generation", "mode")), used, str(row["store_path"])
            )
        return [shown]

    return Result({"environments": rows}, table if found else "No environment is on this node.")


@command(app, example="flox-node env resolve flox/hello")
def resolve(
    environment: Wanted, mode: Mode = "run", namespace: Namespace = "default", token_file: TokenFile = None
) -> Result:
    """Ask FloxHub, as a sandbox does, and say whether what a pod would get is on this node; fetches nothing."""
    from flox_node.environments import floxhub, index
    from flox_node.environments.deadline import Deadline
    from flox_node.environments.resolve import check_allowed, system

    request, access = _asked(environment, mode, namespace, token_file)
    check_allowed(request, access.policy)
    commit = floxhub.tip(
        request.reference,
        git_url=access.policy.git_url,
        token=access.token,
        deadline=Deadline.after(access.policy.realise.wait_s),
        ca_file=access.ca_file,
        network=access.policy.network,
    )
    question = index.Question(access.policy.git_url, request.reference, commit, mode, system())
    found = index.lookup(question, access.paths)
    here = f"generation {found.generation}, {found.store_path}" if found else "not on this node yet"
    return Result({"commit": commit, "resolution": asdict(found) if found else None}, f"{request.reference}: {here}")


@command(app, example="flox-node env realise flox/hello:3 --mode dev")
def realise(
    environment: Wanted, mode: Mode = "run", namespace: Namespace = "default", token_file: TokenFile = None
) -> Result:
    """Have an environment on this node, as a pod would get it, and say which one it is."""
    request, access = _asked(environment, mode, namespace, token_file)
    made = _realised(request, access)
    return Result({"resolution": made}, f"{request.reference}: generation {made['generation']}, {made['store_path']}")


@command(app, example="flox-node env prefetch flox/hello ci/tools")
def prefetch(
    environments: Annotated[list[str], typer.Argument(help="Environments that pods will ask for.")],
    mode: Mode = "run",
    namespace: Namespace = "default",
    token_file: TokenFile = None,
) -> Result:
    """Fetch environments one after the other, so that their first pods start at once; tells each that fails."""
    made, refused = {}, {}
    last: FloxNodeError | None = None
    for environment in environments:
        try:
            made[environment] = _realised(*_asked(environment, mode, namespace, token_file))
            say(f"{environment}: generation {made[environment]['generation']} is on this node.")
        except FloxNodeError as error:
            last = error
            refused[environment] = {"code": error.code, "cause": error.cause}
            say(f"{environment}: {error.cause}")
    return Result({"resolutions": made, "refused": refused}, error=last)


@command(app, example="flox-node env verify --repair")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Fetch again what is damaged.")] = False,
) -> Result:
    """Compare all bits of the environments with the store's database; exit code 8 names what differs."""
    from flox_node.environments import verify as verifying
    from flox_node.environments.access import Access
    from flox_node.environments.deadline import Deadline
    from flox_node.environments.paths import Paths
    from flox_node.errors import CorruptError

    access = Access(_policy(), Paths())
    found = verifying.verify(access, Deadline.after(_VERIFY_S), repair=repair, tell=say)
    lines = [f"{found.environments} environments, {found.store_paths} store paths"]
    lines += [f"repaired: {path}" for path in found.repaired]
    lines += [f"removed, made anew for the next pod: {path}" for path in found.removed]
    lines += [f"damaged: {path}, of {', '.join(users)}" for path, users in found.damaged.items()]
    error = None
    if found.damaged:
        remedy = (
            "No binary cache of the policy has them, or a pod has what was put together here: let the pods that use "
            "them end, and run it again."
            if repair
            else "Run `flox-node env verify --repair`."
        )
        error = CorruptError(f"{len(found.damaged)} store paths are not as they were registered.", remedy=remedy)
    return Result(asdict(found), "\n".join(lines), error=error)


def _realised(request: Request, access: Access) -> dict[str, Any]:
    from flox_node.environments import resolve as resolving
    from flox_node.environments.deadline import Deadline

    resolved = resolving.resolve(request, access, Deadline.after(access.policy.realise.time_s))
    if resolved.warning:
        say(resolved.warning)
    return asdict(resolved.resolution)


def _asked(environment: str, mode: str, namespace: str, token_file: Path | None) -> tuple[Request, Access]:
    from flox_node.environments import tokens
    from flox_node.environments.access import Access
    from flox_node.environments.paths import Paths
    from flox_node.environments.protocol import Request
    from flox_node.environments.reference import Reference

    token = tokens.checked(read_text(token_file).encode(), str(token_file)) if token_file else None
    return Request(Reference.parse(environment), mode, "", namespace), Access(_policy(), Paths(), token)


def _policy() -> Policy:
    from flox_node.host import HostFiles
    from flox_node.state import policy

    return policy.parse(HostFiles(DEFAULT_ROOT).read_optional(policy.PATH))


def _prefix(host_root: Path) -> str:
    return "" if host_root == DEFAULT_ROOT else str(host_root)


def _generation(file: str) -> int | None:
    """Which generation an entry of the index is."""
    try:
        with open(file, "rb") as stream:
            return int(json.loads(stream.read())["generation"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
