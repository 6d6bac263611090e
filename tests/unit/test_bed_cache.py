"""The test bed's cache: each artefact is built once, and a killed build leaves nothing that is taken for one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bed import cache

# Builds the artefact "a": notes the build, makes half of it, waits for a line on stdin, makes the rest.
BUILDER = """
import sys
from tests.bed import cache

def build(folder):
    (folder / "half").write_text("x")
    with open(sys.argv[1], "a") as builds:
        builds.write("x")
    print("half", flush=True)
    sys.stdin.readline()
    (folder / "rest").write_text("x")

print(cache.artefact("a", 1, build), flush=True)
"""


@pytest.fixture(autouse=True)
def bed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOX_NODE_BED", str(tmp_path / "bed"))
    return tmp_path / "bed"


def test_an_artefact_is_built_once_for_each_recipe() -> None:
    builds: list[Path] = []

    first, again, other = (cache.artefact("a", recipe, builds.append) for recipe in ({"v": 1}, {"v": 1}, {"v": 2}))

    assert first == again != other
    assert len(builds) == 2


def test_a_failed_build_is_no_artefact_and_is_tried_again() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        cache.artefact("a", 1, fail)

    assert list(cache.artefact("a", 1, lambda _: None).iterdir()) == []


def test_a_build_killed_half_way_is_begun_anew(tmp_path: Path) -> None:
    with _builder(tmp_path / "builds") as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "half\n"
        builder.send_signal(signal.SIGKILL)

    made = cache.artefact("a", 1, lambda folder: (folder / "whole").touch())

    assert [path.name for path in made.iterdir()] == ["whole"]


def test_two_processes_that_want_one_artefact_build_it_once(tmp_path: Path) -> None:
    with _builder(tmp_path / "builds") as one, _builder(tmp_path / "builds") as other:
        for process in (one, other):  # only one of them builds, and waits for its line
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate()[0].splitlines()[-1] for process in (one, other)]

    assert answers[0] == answers[1]
    assert sorted(path.name for path in Path(answers[0]).iterdir()) == ["half", "rest"]
    assert (tmp_path / "builds").read_text() == "x"


def test_of_what_follows_the_sources_the_newest_stay_and_what_a_living_process_uses() -> None:
    with _user(0) as living:
        assert living.stdout is not None
        living.stdout.readline()
        namesake = cache.artefact("a-b", 1, lambda _: None)
        for recipe in (1, 2, 3):
            with _user(recipe) as user:
                user.communicate("\n")
        assert [cache.exists("a", recipe) for recipe in (0, 1, 2, 3)] == [True, False, True, True]
        assert namesake.exists()
        living.communicate("\n")


def _user(recipe: int) -> "subprocess.Popen[str]":
    """A process that asks for the artefact "a" of a recipe, says so, and lives until it gets a line."""
    code = f"from tests.bed import cache; print(cache.newest('a', {recipe}, lambda _: None, 2), flush=True); input()"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def _builder(builds: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(builds)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
