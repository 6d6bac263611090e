"""flox.dev/nix-mutable with real runc and Nix: packages come into the container's own store, and no further."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.bed import store
from tests.bed.environment import BUSYBOX, ENVIRONMENT, OTHERS, script, store_path
from tests.conftest import FULL
from tests.containerd.test_shim_runc import (
    Node,
    built,  # noqa: F401 - a fixture
    node,  # noqa: F401 - a fixture
)

FLOX = store_path("m", "flox-1.14.1")
NAR_HASH = "0" * 64

# What the node's database says is made up; what goes into the container's is real.
NIX_STORE = """#!/bin/sh
case $1 in
--dump-db) shift; for path; do printf '%s\\n{hash}\\n96\\n\\n0\\n' "$path"; done ;;
*) exec unshare --mount sh -c 'mkdir -p /nix; mount --bind {base}/nix /nix; exec {program} "$@"' nix-store "$@" ;;
esac
"""


def closure_of(base: store.Store) -> list[str]:
    query = f"exec {base.nix_store} --query --requisites {base.paths['nix']}"
    command = f"mkdir -p /nix; mount --bind {base.root}/nix /nix; {query}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def payload(built: Node) -> Node:  # noqa: F811
    """The payload's Nix, and a Flox CLI that says how it was called."""
    base = store.base()
    needed = closure_of(base)
    for path in needed:
        arguments = [f"{base.root}{path}", str(built.path(path))]
        if subprocess.run(["cp", "-al", *arguments], check=False).returncode:  # another file system
            subprocess.run(["cp", "-a", *arguments], check=True)
    script(
        built.path(f"{FLOX}/bin/flox"),
        f"#!{BUSYBOX}/bin/busybox sh\necho flox $* in $PWD; exec {base.nix_store} --version\n",
    )
    current = built.path("/opt/flox-node/current")
    script(current / "bin/nix-store", NIX_STORE.format(hash=NAR_HASH, base=base.root, program=base.nix_store))
    paths = [{"path": path, "references": []} for path in needed]
    paths.append({"path": FLOX, "references": needed})
    entry_points = {"flox": f"{FLOX}/bin/flox", "nix-store": base.nix_store}
    (current / "manifest.json").write_text(json.dumps({"entry_points": entry_points, "store_paths": paths}))
    return built


def seen(folder: Path) -> set[str]:
    return {f"{path}:{path.lstat().st_mtime_ns}" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("uid", "read_only"),
    [(0, False), (1000, True), *((0, True), (1000, False)) * FULL],
    ids=lambda value: str(value),
)
def test_packages_come_into_the_containers_own_store(
    payload: Node,
    node: Node,  # noqa: F811
    uid: int,
    read_only: bool,
) -> None:
    base = store.base()
    before = seen(node.path("/nix/store"))
    script_text = (
        f"export PATH=$PATH:{base.paths['nix']}/bin; flox list; echo text >$HOME/added; "
        "path=$(nix-store --add $HOME/added) && "
        f"cat $path && nix-store --check-validity $path {ENVIRONMENT} {FLOX} && echo valid; "
        "nix-store --gc >/dev/null 2>&1; test -e $path || echo collected; hello still; "
        f"touch {ENVIRONMENT}/x || echo closed; ls -d {OTHERS} || echo unseen; "
        "cat /.flox/env.json; echo; touch /.flox/env/x && echo editable; echo $FLOX_ENV"
    )
    container = node.pod("sh", "-c", script_text, flox={"nix_mutable": "true"}, user={"uid": uid, "gid": uid})
    node.edit(container, root={"path": "rootfs", "readonly": read_only})
    lines = container.run().wait().splitlines()
    link = "/.flox/run/x86_64-linux.hello-run"
    assert lines[0] == "flox list in /"
    assert lines[2:5] == ["text", "valid", "collected"]
    assert f"hello from {link}: still" in lines
    assert [line for line in lines if line in ("closed", "unseen", "editable")] == ["closed", "unseen", "editable"]
    assert lines[-1] == link
    assert seen(node.path("/nix/store")) == before, "the host's store"


def test_a_policy_may_forbid_it(payload: Node, node: Node) -> None:  # noqa: F811
    node.policy(pods={"nix_mutable": False})
    sandbox = node.sandbox(environment="demo/hello", nix_mutable="true")
    assert sandbox.create() == 0
    container = node.container(sandbox, "hello")
    assert container.create() == 1
    assert "the policy does not allow flox.dev/nix-mutable in the namespace default" in container.error
    assert "(code not-allowed)" in container.error


def test_an_image_with_a_nix_of_its_own_is_refused(payload: Node, node: Node) -> None:  # noqa: F811
    container = node.pod("hello", flox={"nix_mutable": "true"})
    (container.bundle / "rootfs/nix/store/x").mkdir(parents=True)
    assert container.create() == 1
    assert "flox.dev/nix-mutable: the image has a /nix of its own" in container.error
