from __future__ import annotations

import os
from pathlib import Path

import pytest

from flox_node.environments import closure, roots
from flox_node.environments.errors import BuildFailedError
from flox_node.environments.paths import Paths

KEY = "a" * 32
ENVIRONMENT = f"/nix/store/{KEY}-environment-run"
PACKAGE = f"/nix/store/{'b' * 32}-package"
OTHERS = f"/nix/store/{'c' * 32}-somebody-elses"
SINGLE = f"/nix/store/{'d' * 32}-single.sh"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A store with an environment, its package, a package of somebody else, and a store path that is one file."""
    paths = Paths(str(tmp_path))
    for path in (ENVIRONMENT, PACKAGE, OTHERS):
        folder = Path(paths.on_disk(path))
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/program").write_text(path)
        (folder / "bin/program").chmod(0o555)
        (folder / "bin/link").symlink_to("/nix/store/anywhere")
        (folder / "bin").chmod(0o555)
    Path(paths.on_disk(SINGLE)).write_text("single")
    Path(paths.on_disk(ENVIRONMENT), "requisites.txt").write_text(f"{PACKAGE}\n{SINGLE}\n")
    return paths


def test_the_closure_counts_the_environment_itself(paths: Paths) -> None:
    assert closure.requisites(ENVIRONMENT, paths) == tuple(sorted((ENVIRONMENT, PACKAGE, SINGLE)))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "/etc/shadow",
        "/nix/store/",
        f"/nix/store/../../etc/{'b' * 32}-x",
        f" {PACKAGE}",
        f"{PACKAGE}/bin",
        f"{PACKAGE}/..",
        f"/nix/store/{'e' * 32}-wrong-alphabet",
        f"/nix/store/{'b' * 32}-",
        f"/nix/store/{'b' * 32}-.x",
        f"/nix/store/{'b' * 32}-a\x00b",
    ],
)
def test_a_line_that_is_no_store_path_is_refused(paths: Paths, line: str) -> None:
    Path(paths.on_disk(ENVIRONMENT), "requisites.txt").write_text(f"{PACKAGE}\n{line}\n{SINGLE}\n")
    with pytest.raises(BuildFailedError, match="no store path"):
        closure.requisites(ENVIRONMENT, paths)


def test_a_missing_member_of_the_closure_is_named(paths: Paths) -> None:
    missing = f"/nix/store/{'f' * 32}-gone"
    Path(paths.on_disk(ENVIRONMENT), "requisites.txt").write_text(missing)
    with pytest.raises(BuildFailedError, match=missing):
        closure.requisites(ENVIRONMENT, paths)


def test_a_root_names_the_stores_own_path(paths: Paths) -> None:
    assert not roots.holds(KEY, ENVIRONMENT, paths)
    roots.add(KEY, ENVIRONMENT, paths)
    roots.add(KEY, ENVIRONMENT, paths)
    assert os.readlink(f"{paths.gc_roots}/env-{KEY}") == ENVIRONMENT
    assert os.listdir(paths.gc_roots) == [f"env-{KEY}"]
    assert roots.holds(KEY, ENVIRONMENT, paths)
    assert not roots.holds(KEY, OTHERS, paths)


def test_a_root_stays_unless_what_it_was_made_for_fails(paths: Paths) -> None:
    def fail() -> None:
        with roots.added(KEY, ENVIRONMENT, paths):
            assert roots.holds(KEY, ENVIRONMENT, paths)
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert os.listdir(paths.gc_roots) == []
    with roots.added(KEY, ENVIRONMENT, paths):
        pass
    with pytest.raises(OSError, match="No space"):
        fail()
    assert roots.holds(KEY, ENVIRONMENT, paths), "it was there before: another environment's"
