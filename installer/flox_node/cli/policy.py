"""`flox-node policy apply|check|show|explain`: the administrator's policy of one node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flox_node.cli.node import DEFAULT_ROOT, HostRoot
from flox_node.cli.output import Result, application, command, read_text

app = application("Read and write the node's policy: hub, binary caches, limits, what pods may.")
PolicyFile = Annotated[Path, typer.Argument(help="The policy as TOML; what it does not say has its default.")]


@command(app, example="flox-node policy apply policy.toml")
def apply(file: PolicyFile, host_root: HostRoot = DEFAULT_ROOT) -> Result:
    """Check a policy and put it into force. Pods that are created from then on follow it."""
    from flox_node.actions.write_policy import remember_former
    from flox_node.host import HostFiles
    from flox_node.state import policy, policy_text

    files = HostFiles(host_root)
    before = files.read_optional(policy.PATH)
    data = policy_text.applied(read_text(file), before)
    changed = data != before
    if changed:
        remember_former(files, json.loads(data).get("inner_runtime"))
        files.mkdir(policy.PATH.rpartition("/")[0])
        files.write_atomic(policy.PATH, data, 0o644)
    return Result({"changed": changed}, f"{policy.PATH} is in force." if changed else "Nothing to do.")


@command(app, example="flox-node policy check policy.toml")
def check(file: PolicyFile) -> Result:
    """Check a policy without putting it into force."""
    from flox_node.state import policy_text

    policy_text.applied(read_text(file), None)
    return Result({"valid": True}, f"{file} is a policy.")


@command(app, example="flox-node policy show > policy.toml")
def show(host_root: HostRoot = DEFAULT_ROOT) -> Result:
    """Print the policy in force, defaults included, as TOML that `apply` takes back."""
    from flox_node.host import HostFiles
    from flox_node.state import policy, policy_text

    given = policy.parse(HostFiles(host_root).read_optional(policy.PATH))
    return Result({"policy": given.as_dict()}, policy_text.rendered(given).encode())


@command(app, example="flox-node policy explain realise.wait_s")
def explain(
    key: Annotated[str, typer.Argument(help="A key, for example realise.wait_s or namespaces.*.owners.")],
    host_root: HostRoot = DEFAULT_ROOT,
) -> Result:
    """Say what one key means, its default, and what is in force."""
    from dataclasses import asdict

    from flox_node.host import HostFiles
    from flox_node.state import policy, policy_text

    found = policy_text.explained(key, policy.parse(HostFiles(host_root).read_optional(policy.PATH)))
    default, value = json.dumps(found.default), json.dumps(found.value)
    return Result(asdict(found), f"{found.key}: {found.text}\ndefault: {default}\nin force: {value}")
