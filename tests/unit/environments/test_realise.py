"""The order of a realisation, with Git, Nix and Flox played; what they really do is another tier's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flox_node.environments import closure, flox_cli, index, realise, roots, substitute
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import BuildFailedError, UnsupportedError
from flox_node.environments.flox_cli import Built
from flox_node.environments.floxmeta import Floxmeta, Generation
from flox_node.environments.index import Question
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.state.policy import Policy
from tests.doubles.hub import lockfile, store_path_package

SYSTEM = "x86_64-linux"
HELLO = f"/nix/store/{'b' * 32}-hello"
BUILT = f"/nix/store/{'c' * 32}-environment"
COMMIT = "1" * 40
TOKEN = "the pod's own"
LOCK = lockfile([store_path_package("hello", HELLO)])
QUESTION = Question("https://hub/git", Reference("demo", "hello"), COMMIT, "run", SYSTEM)


class Realisation:
    """One, with what its programs were given and did; `lock` is what the hub has, `pulled` what Flox pulled."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.lock: Mapping[str, Any] = LOCK
        self.pulled: Mapping[str, Any] = LOCK
        self.modes = {"run": BUILT}
        self.steps: list[str] = []
        self.nix_env: Mapping[str, str] = {}
        self.pull_token: str | None = None
        self.held_while_fetched: list[str] = []

    def step(self, name: str) -> None:
        self.steps.append(name)

    def bytes(self, done: int, expected: int) -> None:
        pass

    def read(self, *_: object) -> Generation:
        return Generation(1, COMMIT, self.lock)

    def fetch(self, _packages: object, nix: substitute.Nix, *_: object) -> None:
        self.nix_env = nix.env
        self.held_while_fetched = [
            str(link.readlink()) for link in Path(self.paths.gc_roots).rglob("*") if link.is_symlink()
        ]

    def pull(self, *_: object, token: str | None, **__: object) -> Built:
        self.pull_token = token
        Path(self.paths.on_disk(BUILT)).mkdir(parents=True)
        return Built(self.modes, self.pulled)

    def run(self) -> index.Resolution:
        return realise.realise(QUESTION, Access(Policy(), self.paths, TOKEN), Deadline.after(3600), self)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Realisation:
    one = Realisation(Paths(str(tmp_path)))
    monkeypatch.setattr(realise, "program", lambda name, _: f"/payload/bin/{name}")
    monkeypatch.setattr(Floxmeta, "read", one.read)
    monkeypatch.setattr(substitute, "fetch", one.fetch)
    monkeypatch.setattr(substitute, "forget_halves", lambda *_: None)
    monkeypatch.setattr(flox_cli, "pull", one.pull)
    monkeypatch.setattr(closure, "requisites", lambda *_: [])
    return one


def test_an_environment_is_rooted_before_it_is_in_the_index(one: Realisation, monkeypatch: pytest.MonkeyPatch) -> None:
    record = index.record

    def rooted(question: Question, resolution: index.Resolution, *rest: Any, **options: Any) -> None:
        assert roots.holds(resolution.key, BUILT, one.paths), "a collection in between would take it"
        record(question, resolution, *rest, **options)

    monkeypatch.setattr(index, "record", rooted)
    assert one.run().store_path == BUILT
    assert one.steps == ["read", "fetch", "build", "publish"]
    assert HELLO in one.held_while_fetched
    assert index.lookup(QUESTION, one.paths) is not None


def test_only_flox_is_given_the_token_and_nix_is_not(one: Realisation) -> None:
    """What Nix fetches comes from the policy's caches, which have no business with a pod's token."""
    one.run()
    assert one.pull_token == TOKEN
    assert TOKEN not in one.nix_env.values()


def test_what_was_pushed_over_between_the_check_and_the_build_is_not_published(one: Realisation) -> None:
    one.pulled = lockfile([store_path_package("other", f"/nix/store/{'d' * 32}-other")])
    with pytest.raises(BuildFailedError, match="was changed on FloxHub while it was fetched"):
        one.run()
    assert index.lookup(QUESTION, one.paths) is None


def test_a_mode_that_flox_did_not_build_is_an_error(one: Realisation) -> None:
    one.modes = {"dev": BUILT}
    with pytest.raises(BuildFailedError, match="no environment for mode run"):
        one.run()


def test_what_a_node_does_not_take_is_refused_before_anything_is_fetched(one: Realisation) -> None:
    one.lock = {**LOCK, "lockfile-version": 2}
    with pytest.raises(UnsupportedError):
        one.run()
    assert one.steps == ["read"]
