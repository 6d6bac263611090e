"""What turns a node box into a Flox node of the tests: the product's command, a FloxHub in its network, Flox pods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tests.bed import payload, store
from tests.bed.box import NodeBox
from tests.bed.cri import Sandbox
from tests.bed.pod import HOST_ROOT
from tests.bed.processes import PATIENCE_S
from tests.doubles.hub import HubData, catalog_package, lockfile

EMPTY_IMAGE = "docker.io/flox/empty:1.0.0"
ENVIRONMENT = "flox.dev/environment"
HUB_PORT = 8080
PRIVATE_TOKEN = "flox_pat_of-acme"
_HUB = f"http://127.0.0.1:{HUB_PORT}"
_PROJECT = Path(__file__).parents[2]
_PROGRAM = Path(sys.executable).with_name("flox-node")


def flox_node(box: NodeBox, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run this tree's `flox-node` on this machine against the box."""
    done = beside(box, _PROGRAM, *arguments, "--host-root", HOST_ROOT)
    if check and done.returncode:
        words = " ".join(map(str, arguments))
        raise RuntimeError(f"flox-node {words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def beside(box: NodeBox, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of this machine as a privileged pod of the box, with the node's root file system at HOST_ROOT."""
    enter = [sys.executable, "-m", "tests.bed.pod", str(box.pid)]
    return subprocess.run(
        [*enter, *map(str, command)], capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=_PROJECT
    )


def installation() -> tuple[str, ...]:
    """The words that install the payload of this tree. Tests do it more often in an hour than a node should see."""
    return ("install", "--payload", str(payload.folder()), "--restarts-per-hour", "1000")


def install(box: NodeBox, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Install the payload of this tree on the box."""
    return flox_node(box, *installation(), check=check)


def start_hub(box: NodeBox, folder: Path) -> HubData:
    """A FloxHub and a binary cache on the box's own 127.0.0.1, and a policy on the node that names them."""
    data = publish(folder / "hub")
    serve_hub(box, data)
    policy = folder / "policy.toml"
    policy.write_text(hub_policy())
    flox_node(box, "policy", "apply", policy)
    return data


def publish(folder: Path) -> HubData:
    """A FloxHub with `demo/hello`, which no node has; `demo/web`, busybox beside it; `acme/tool`, for a token.

    `flox/hello`, `flox/redis` and `acme/private` are those of docs/examples; `ci/tools` has a bash.
    """
    cache = store.binary_cache()
    hello = catalog_package("hello", {"out": cache.hello_store_path})
    busybox = catalog_package("busybox", {"out": cache.busybox_store_path})
    data = HubData(folder)
    data.publish("demo", "hello", lockfile([hello]))
    data.publish("demo", "web", lockfile([hello, busybox]))
    data.publish("acme", "tool", lockfile([hello]))
    data.publish("acme", "private", lockfile([hello]))
    data.publish("flox", "hello", lockfile([hello]))
    bash = catalog_package("bash", {"out": cache.bash_store_path}, priority=4)
    data.publish("ci", "tools", lockfile([hello, busybox, bash]))
    data.publish("flox", "redis", lockfile([catalog_package("redis", {"out": cache.redis_store_path})]))
    data.restrict("acme", PRIVATE_TOKEN)
    return data


def serve_hub(box: NodeBox, data: HubData) -> None:
    """Serve a FloxHub and the binary cache on the box's own 127.0.0.1, until the box is closed."""
    program = [sys.executable, "-m", "tests.doubles.hub", "--port", str(HUB_PORT)]
    environment = {"PYTHONPATH": str(_PROJECT), "PATH": os.environ["PATH"]}
    box.serve([*program, "--data", str(data.folder), "--cache", str(store.binary_cache().cache_dir)], env=environment)
    _wait_for(box, f"{_HUB}/cache/nix-cache-info")


def hub_policy(more: Mapping[str, str] = MappingProxyType({})) -> str:
    """The policy.toml of nodes with such a hub. more: further binary caches, their keys by address."""
    caches = {f"{_HUB}/cache": store.binary_cache().public_key, **more}
    addresses, keys = json.dumps(list(caches)), json.dumps(list(caches.values()))
    return f'[floxhub]\ngit_url = "{_HUB}/git"\n[nix]\nsubstituters = {addresses}\ntrusted_public_keys = {keys}\n'


def load_empty_image(box: NodeBox) -> None:
    """Import the image that Flox pods name from the payload."""
    box.load(payload.folder() / "images/flox-empty.tar")


def run_flox_sandbox(
    box: NodeBox, environment: str | None, *, name: str = "flox", annotations: Mapping[str, str] | None = None
) -> Sandbox:
    """Run a sandbox of the handler `flox`, as a kubelet does for `runtimeClassName: flox`."""
    wanted = {ENVIRONMENT: environment} if environment is not None else {}
    return box.cri.run_sandbox("flox", name=name, annotations={**wanted, **(annotations or {})})


def run_flox_container(
    box: NodeBox, sandbox: Sandbox, command: Sequence[str], *, env: Mapping[str, str] | None = None, name: str = "main"
) -> str:
    """Start a container with the empty image in a Flox sandbox; its id."""
    return box.cri.run_container(sandbox, command, image=EMPTY_IMAGE, name=name, env=env)


def _wait_for(box: NodeBox, url: str, timeout: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout
    fetch = [sys.executable, "-c", f"import urllib.request; urllib.request.urlopen({url!r}, timeout=2)"]
    while True:
        done = subprocess.run(
            ["nsenter", f"--target={box.pid}", "--net", *fetch], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} does not answer in the box:\n{done.stderr[-500:]}")
        time.sleep(0.05)
