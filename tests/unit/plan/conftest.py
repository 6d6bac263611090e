"""A fake node, and a payload small enough to be placed on it hundreds of times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flox_node.host.trees import walk
from flox_node.payload import Payload, open_payload
from flox_node.payload.build import Recipe, build
from flox_node.payload.nar import nar_of
from tests.unit.fake_node import FakeNode

HASH = "0123456789abcdfghijklmnpqrsvwxyz"


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Payload:
    return built(tmp_path_factory.mktemp("payload"), "0.1.0")


@pytest.fixture(scope="session")
def successor(tmp_path_factory: pytest.TempPathFactory) -> Payload:
    """The next release, with the same store paths."""
    return built(tmp_path_factory.mktemp("successor"), "0.2.0")


def built(folder: Path, version: str) -> Payload:
    name = f"/nix/store/{HASH}-tools"
    tools = folder / "root" / name.lstrip("/") / "bin"
    tools.mkdir(parents=True)
    for program in ("flox", "flox-node", "flox-node-realise", "nix-store"):
        (tools / program).write_text(program)
        (tools / program).chmod(0o755)
    digest = nar_of(walk(tools.parent))
    registration = folder / "registration"
    registration.write_text(f"{name}\n{digest.nar_hash.removeprefix('sha256:')}\n{digest.nar_size}\n\n0\n")
    shim = folder / "flox-runtime"
    shim.write_bytes(b"shim")
    entry_points = {
        program: f"{name}/bin/{program}" for program in ("flox", "flox-node", "flox-node-realise", "nix-store")
    }
    recipe = Recipe(folder / "root", entry_points, shim, version, registration=registration)
    build(recipe, folder / "payload")
    return open_payload(folder / "payload")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    node = FakeNode(tmp_path / "node")
    with node.containerd.serving():
        yield node
