"""What the hub granted, to whom, and for how long it counts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from flox_node.environments import grants
from flox_node.environments.grants import Grant
from flox_node.environments.index import Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference

STORE_PATH = "/nix/store/bh6w6asdcbsvckn8a9xragcvxqc2gbjm-environment-run"
RESOLUTION = Resolution("demo/hello", 3, "e" * 40, "run", "x86_64-linux", STORE_PATH)


def grant(token: str | None = "flox_right", hub: str = "https://hub.example.com/git") -> Grant:
    return Grant(hub, Reference("demo", "hello"), "run", "x86_64-linux", token)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / STORE_PATH[1:]).mkdir(parents=True)
    root = tmp_path / "nix/var/nix/gcroots/flox-node/env-bh6w6asdcbsvckn8a9xragcvxqc2gbjm"
    root.parent.mkdir(parents=True)
    root.symlink_to(STORE_PATH)
    return Paths(str(tmp_path))


def test_both_sides_give_a_grant_the_same_name() -> None:
    """The shim's test has the same name (shim/internal/realise/fresh_test.go)."""
    asked = Grant("https://api.flox.dev/git", Reference("demo", "hello", 3), "dev", "x86_64-linux", "flox_right")
    name = asked.name(b"0123456789abcdef0123456789abcdef")
    assert name == "16bc5a542f9ed92b7394c16620b2f9c06379b1892ece48d59a3ca489b28d1c89"


def test_a_grant_counts_for_its_own_token_and_hub_alone(paths: Paths) -> None:
    grants.record(grant(), RESOLUTION, paths)
    found = grants.find(grant(), paths, 60)
    assert found is not None
    assert found.resolution == RESOLUTION
    for other in (grant("flox_wrong"), grant(None), grant(hub="https://other.example.com/git")):
        assert grants.find(other, paths, 60) is None


def test_a_grant_ends_with_its_time_its_path_and_a_refusal(paths: Paths) -> None:
    grants.record(grant(), RESOLUTION, paths)
    assert grants.find(grant(), paths, -1) is None
    grants.forget(grant(), paths)
    assert grants.find(grant(), paths, 60) is None
    grants.record(grant(), RESOLUTION, paths)
    os.unlink(f"{paths.gc_roots}/env-bh6w6asdcbsvckn8a9xragcvxqc2gbjm")
    assert grants.find(grant(), paths, 60) is None


def test_a_grant_of_the_future_does_not_count(paths: Paths) -> None:
    grants.record(grant(), RESOLUTION, paths)
    (file,) = Path(paths.grants).iterdir()
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({**entry, "granted_at": time.time() + 3600}))
    assert grants.find(grant(), paths, 86400) is None


def test_no_token_is_kept_and_nobody_but_root_can_read_the_key(paths: Paths) -> None:
    grants.record(grant(), RESOLUTION, paths)
    for file in Path(paths.root, "var/lib/flox-node").rglob("*"):
        if file.is_file():
            assert b"flox_right" not in file.read_bytes()
            assert file.stat().st_mode & 0o777 == 0o600
