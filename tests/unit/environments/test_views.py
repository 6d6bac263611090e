from __future__ import annotations

import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from flox_node.environments import closure, roots, views
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


def view(paths: Paths) -> Path:
    return Path(paths.on_disk(paths.view(KEY)))


def test_a_view_holds_the_closure_and_nothing_else(paths: Paths) -> None:
    views.make(KEY, closure.requisites(ENVIRONMENT, paths), paths)
    assert sorted(os.listdir(view(paths) / "store")) == sorted(
        os.path.basename(p) for p in (ENVIRONMENT, PACKAGE, SINGLE)
    )
    assert os.listdir(view(paths)) == ["store"]


def test_a_view_is_the_same_files_and_not_copies(paths: Paths) -> None:
    views.make(KEY, (PACKAGE, SINGLE), paths)
    for path in (f"{PACKAGE}/bin/program", SINGLE):
        seen = view(paths) / path.removeprefix("/nix/")
        assert seen.stat().st_ino == os.stat(paths.on_disk(path)).st_ino
    link = view(paths) / f"{PACKAGE.removeprefix('/nix/')}/bin/link"
    assert os.readlink(link) == "/nix/store/anywhere"
    folder = link.parent.stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_mtime) == (0o555, 1)


def test_a_view_that_is_there_is_not_touched(paths: Paths) -> None:
    views.make(KEY, (PACKAGE,), paths)
    before = view(paths).stat().st_ino
    views.make(KEY, (PACKAGE, SINGLE), paths)
    assert view(paths).stat().st_ino == before
    assert len(os.listdir(view(paths) / "store")) == 1


def test_a_removed_view_leaves_nothing_and_the_store_as_it_was(paths: Paths) -> None:
    views.make(KEY, (PACKAGE, SINGLE), paths)
    views.remove(KEY, paths)
    assert os.listdir(paths.views) == []
    assert Path(paths.on_disk(f"{PACKAGE}/bin/program")).read_text() == PACKAGE
    assert os.stat(paths.on_disk(f"{PACKAGE}/bin/program")).st_nlink == 1
    views.remove(KEY, paths)


def test_a_store_on_another_mount_is_an_error_and_never_a_copy(paths: Paths) -> None:
    with pytest.raises(OSError, match="cross-device"):
        views._link("/proc/version", f"{paths.root}/copied")


def _make(root: str) -> None:
    views.make(KEY, (PACKAGE,), Paths(root))


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.04, 0.08])
def test_a_view_is_whole_or_not_there_when_its_maker_is_killed(paths: Paths, delay: float) -> None:
    many = Path(paths.on_disk(PACKAGE)) / "many"
    many.mkdir()
    for number in range(4000):
        (many / str(number)).touch()
    maker = multiprocessing.get_context("fork").Process(target=_make, args=(paths.root,))
    maker.start()
    started = time.monotonic()
    while not os.path.isdir(paths.views) and time.monotonic() < started + 5:
        time.sleep(0.001)
    time.sleep(delay)
    maker.kill()
    maker.join()
    if views.exists(KEY, paths):
        assert len(os.listdir(view(paths) / PACKAGE.removeprefix("/nix/") / "many")) == 4000
    views.make(KEY, (PACKAGE,), paths)
    assert len(os.listdir(view(paths) / PACKAGE.removeprefix("/nix/") / "many")) == 4000
    assert os.listdir(paths.views) == [KEY]


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
