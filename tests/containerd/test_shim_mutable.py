"""flox.dev/nix-mutable with real runc and Nix: packages come into the container's own store, and no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bed import cli, releases, store
from tests.bed.cli import FLOX
from tests.bed.environment import ENVIRONMENT, OTHERS, script
from tests.conftest import FULL
from tests.containerd.test_shim_runc import (
    Node,
    built,  # noqa: F401 - a fixture
    node,  # noqa: F401 - a fixture
)

# What the node's database says is known before; what goes into the container's is real Nix.
NIX_STORE = """#!/bin/sh
case $1 in
--dump-db) shift; for path; do cat "{registered}/${{path##*/}}"; done ;;
*) exec unshare --mount sh -c 'mkdir -p /nix; mount --bind {base}/nix /nix; exec {program} "$@"' nix-store "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def payload(built: Node) -> Node:  # noqa: F811
    """The payload's Nix and busybox, and the double of the Flox CLI."""
    added, registered = cli.add(built.dir), built.path("/registered")
    registered.mkdir()
    for path, lines in added.registered.items():
        (registered / Path(path).name).write_text(lines)
    script(
        built.path("/opt/flox-node/current/bin/nix-store"),
        NIX_STORE.format(registered=registered, base=store.base().root, program=added.nix_store),
    )
    return built


def seen(folder: Path) -> set[str]:
    return {f"{path}:{path.lstat().st_mtime_ns}" for path in folder.rglob("*")}


# As a user and as GitLab's runner would: a program of the environment's own, installed and gone again.
ADD = (
    "mkdir -p /nix/var/flox-node/data/new/bin; cd /nix/var/flox-node/data; printf '%s\\n' '#!/bin/sh' 'echo good day' "
    ">new/bin/greet; chmod 755 new/bin/greet; nix-store --add new"
)
COMBINATIONS = [(0, False), (1000, True), *((0, True), (1000, False)) * FULL]


class Run:
    """A mutable container that waits, and commands in it as `kubectl exec` runs them."""

    def __init__(self, node: Node, uid: int, *, read_only: bool = False, **process: Any) -> None:  # noqa: F811
        self._uid = uid
        user = {"uid": uid, "gid": uid}
        self.container = node.pod("sleep", "600", flox={"nix_mutable": "true"}, user=user, **process)
        terminals = {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666"],
        }
        mounts = [*self.container.config["mounts"], terminals]  # containerd gives them to every container
        node.edit(self.container, root={"path": "rootfs", "readonly": read_only}, mounts=mounts)
        self.rootfs = self.container.bundle / "rootfs"

    def start(self) -> Run:
        self.container.run()
        try:
            self.container.enter()
        finally:
            print((self.container.bundle / "stderr").read_text(), self.container.output)
        return self

    def __call__(self, command: str) -> str:
        status, output, _ = self.container.exec("sh", "-c", f"{{ {command}; }} 2>&1", uid=self._uid)
        assert status == 0, output
        return output


@pytest.mark.parametrize(("uid", "read_only"), COMBINATIONS)
def test_packages_come_into_the_containers_own_store(
    payload: Node,
    node: Node,  # noqa: F811
    uid: int,
    read_only: bool,
) -> None:
    before = seen(node.path("/nix/store"))
    run = Run(node, uid, read_only=read_only).start()
    path = run(ADD).strip()
    assert run(f"nix-store --check-validity {path} {ENVIRONMENT} {FLOX} && echo valid") == "valid\n"
    link = "/.flox/run/x86_64-linux.hello-run"
    assert run("echo $FLOX_ENV") == f"{link}\n"
    assert "No packages are installed for your current system" in run("cd /proc; flox list")
    assert run(f"cd /proc; flox install -i greet {path}") == "✔ 'greet' installed to environment 'hello'\n"
    assert run("greet") == "good day\n", "on the PATH of every later exec"
    assert run("flox list") == f"greet: {path}\n"
    assert f'greet.store-path = "{path}"' in run("flox list -c")
    assert run("flox list -c | flox edit -f -") == "! No changes made to environment.\n"
    assert run("flox list -c | sed s/^greet/again/ | flox edit -f -") == "✔ Environment successfully updated.\n"
    activate = "flox list -c | sed 's/^GREETING.*/GREETING = \"x\"/' | flox edit -f -"
    assert "Please 'exit' the environment and run 'flox activate'" in run(activate)
    assert "no package named 'greet' in the manifest" in run("flox uninstall greet || true")
    assert run("flox uninstall again") == "━ 'again' uninstalled from environment 'hello'\n"
    assert "not found" in run("greet || true")
    assert "api/v1/catalog/resolve" in run("flox install curl || true")
    run("nix-store --gc")
    assert run(f"test -e {path} || echo collected") == "collected\n"
    for root in ("cli", "nix", "environment"):
        run(f"nix-store --check-validity $(readlink /nix/var/nix/gcroots/flox-node/{root})")
    assert "Read-only file system" in run(f"touch {ENVIRONMENT}/x || true")
    assert "No such file" in run(f"ls -d {OTHERS} || true")
    assert seen(node.path("/nix/store")) == before, "the host's store"
    run(ADD)
    assert (run.rootfs / path.lstrip("/")).is_dir(), "in the container's own layer, which is the pod's storage"


@pytest.mark.parametrize(("uid", "read_only"), COMBINATIONS)
def test_an_image_with_files_and_users_of_its_own_needs_no_home_and_no_tmp(
    payload: Node,
    node: Node,  # noqa: F811
    uid: int,
    read_only: bool,
) -> None:
    run = Run(node, uid, read_only=read_only)
    (run.rootfs / "etc").mkdir()
    (run.rootfs / "etc/passwd").write_text("daemon:x:1:1::/nowhere:/bin/false\n")
    (run.rootfs / "tmp").mkdir(mode=0o555)
    run.start()
    path = run(ADD).strip()
    assert "installed" in run(f"flox install -i greet {path}")
    assert run("greet") == "good day\n"


def test_it_has_what_flox_needs_whatever_the_policy_says_and_asks_the_policys_hub_and_caches(
    payload: Node,
    node: Node,  # noqa: F811
) -> None:
    node.policy(
        inner_runtime=str(releases.runc()),
        pods={"userland": "off", "cache_folder": "memory"},
        floxhub={"git_url": "http://127.0.0.1:9/git"},
        nix={"substituters": ["http://127.0.0.1:9/cache"], "extra_trusted_public_keys": ["mine-1:AAAA"]},
    )
    run = Run(node, 0).start()
    assert "(http://127.0.0.1:9/api/v1/catalog/resolve)" in run("flox install curl || true")
    settings = run('printf "%s" "$NIX_CONFIG"')
    assert "substituters = http://127.0.0.1:9/cache\n" in settings
    assert settings.endswith(" mine-1:AAAA")
    assert "installed" in run(f"flox install -i greet $({ADD})")


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
