from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from flox_node.environments import lock as locks
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import EnvironmentNotFoundError, NetworkError, UnsupportedError
from flox_node.environments.flox_cli import private_environment
from flox_node.environments.floxmeta import Floxmeta, Generation
from flox_node.environments.reference import Reference
from flox_node.state.policy import FloxHub, Policy
from tests.doubles.hub import Hub, HubData, flake_package, lockfile, store_path_package

GIT = shutil.which("git")


def read(
    hub: Hub, folder: Path, text: str = "demo/hello", *, token: str | None = None, git: str | None = GIT
) -> Generation:
    assert git is not None
    env = private_environment(str(folder), Policy(floxhub=FloxHub(git_url=hub.git_url)), token=token, ca_file=None)
    return Floxmeta(git, f"{folder}/meta", env, Deadline.after(3600)).read(Reference.parse(text), hub.git_url)


def test_the_live_generation_is_the_last_one_that_became_live(hub: Hub, data: HubData, tmp_path: Path) -> None:
    second = lockfile([store_path_package("other", "/nix/store/" + "c" * 32 + "-other")])
    data.publish("demo", "hello", second)
    assert read(hub, tmp_path / "a").number == 2
    assert read(hub, tmp_path / "a2").lock == second
    commit = data.switch("demo", "hello", 1)
    live = read(hub, tmp_path / "b")
    assert (live.number, live.commit) == (1, commit)


def test_a_pinned_generation_is_read_whatever_is_live(hub: Hub, data: HubData, tmp_path: Path) -> None:
    data.publish("demo", "hello", lockfile())
    generation = read(hub, tmp_path / "a", "demo/hello:1")
    assert generation.number == 1
    assert generation.lock["packages"][0]["install_id"] == "hello"


def test_an_unknown_generation_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotFoundError, match="generation 9"):
        read(hub, tmp_path / "a", "demo/hello:9")


def test_a_branch_that_vanished_meanwhile_is_an_error(hub: Hub, data: HubData, tmp_path: Path) -> None:
    data.delete("demo", "hello")
    with pytest.raises(NetworkError, match="couldn't find remote ref"):
        read(hub, tmp_path / "a")


def test_the_token_reaches_git_by_its_environment_only(hub: Hub, data: HubData, tmp_path: Path) -> None:
    data.restrict("demo", "flox_secret")
    spy = tmp_path / "git"
    spy.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/argv\nexec {GIT} "$@"\n')
    spy.chmod(0o755)
    read(hub, tmp_path / "a", token="flox_secret", git=str(spy))
    assert "fetch" in (tmp_path / "argv").read_text()
    assert "flox_secret" not in (tmp_path / "argv").read_text()
    left = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert left
    assert not [path for path in left if b"flox_secret" in path.read_bytes()]


def test_private_folders_are_readable_for_nobody_else(hub: Hub, tmp_path: Path) -> None:
    env = private_environment(str(tmp_path / "a"), Policy(), token=None, ca_file=None)
    for name in ("HOME", "TMPDIR"):
        assert stat.S_IMODE(os.stat(env[name]).st_mode) == 0o700


def test_flake_installs_are_refused_by_their_names() -> None:
    lock = lockfile([store_path_package("hello", "/nix/store/x"), flake_package("zebra"), flake_package("adder")])
    with pytest.raises(UnsupportedError, match="adder, zebra"):
        locks.check(lock, "x86_64-linux")


def test_a_flake_for_another_system_does_not_matter() -> None:
    locks.check(lockfile([flake_package("zebra", system="aarch64-darwin")]), "x86_64-linux")


@pytest.mark.parametrize(
    "lock", [{}, {"lockfile-version": 2, "packages": []}, {"lockfile-version": 1, "packages": [1]}]
)
def test_a_lock_of_unknown_form_is_refused(lock: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError):
        locks.check(lock, "x86_64-linux")
