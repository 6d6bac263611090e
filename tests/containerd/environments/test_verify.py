"""`flox-node env verify --repair` on a real store: what a failing disk did is found, told, and fetched again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bed import store
from tests.containerd.environments.store_node import StoreNode
from tests.doubles.hub import Hub

VERIFY = """
import dataclasses, json, sys
sys.path.append("/app")
from flox_node.environments import verify
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.paths import Paths
from flox_node.state import policy
access = Access(policy.parse(open("/etc/flox-node/policy.json", "rb").read()), Paths())
found = verify.verify(access, Deadline.after(60), repair="--repair" in sys.argv, tell=lambda _: None)
print(json.dumps(dataclasses.asdict(found)))
"""


def verified(node: StoreNode, *options: str) -> dict[str, Any]:
    output = node.run(node.python, "-IS", "-X", "pycache_prefix=/tmp/compiled", "-c", VERIFY, *options)
    loaded: dict[str, Any] = json.loads(output)
    return loaded


def spoil(file: Path) -> bytes:
    """What a disk does; other nodes have the same file by hard links. Gives what it was."""
    was = file.read_bytes()
    mode = file.stat().st_mode
    file.parent.chmod(0o755)
    file.unlink()
    file.write_bytes(was[:-1] + bytes([was[-1] ^ 1]))
    file.chmod(mode)
    file.parent.chmod(0o555)
    return was


def test_damaged_packages_are_found_and_fetched_again_and_what_no_cache_has_is_told(node: StoreNode, hub: Hub) -> None:
    made = node.realise("demo/hello")["resolution"]["store_path"]
    clean = verified(node)
    assert (clean["environments"], clean["damaged"], clean["repaired"]) == (1, {}, [])
    assert clean["store_paths"] > 3
    program = node.real(f"{node.hello}/bin/hello")
    was = spoil(program)
    damaged = {node.hello: ["demo/hello (run)"]}
    assert verified(node)["damaged"] == damaged
    assert verified(node, "--repair")["damaged"] == damaged, "the policy names no cache"
    known = store.binary_cache()
    node.policy(hub.git_url, nix={"substituters": [hub.cache_url], "trusted_public_keys": [known.public_key]})
    found = verified(node, "--repair")
    assert (found["damaged"], found["repaired"]) == ({}, [node.hello])
    assert program.read_bytes() == was
    node.run(node.nix_store, "--verify", "--check-contents")
    spoil(node.real(f"{made}/requisites.txt"))
    assert made in verified(node)["damaged"]
    roots = node.real("/nix/var/nix/gcroots/flox-node")
    (roots / "pod-1").symlink_to(made)
    assert made in verified(node, "--repair")["damaged"], "a pod has it"
    (roots / "pod-1").unlink()
    found = verified(node, "--repair")
    assert (found["damaged"], found["repaired"], found["removed"]) == ({}, [], [made])
    assert not node.real(made).exists()
    assert not node.pulls()
    assert node.realise("demo/hello")["resolution"]["store_path"] == made
    assert verified(node)["damaged"] == {}
