"""The private folders of realisations, running and dead."""

import os
from pathlib import Path

import pytest

from flox_node.environments import work
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import DeadlineError
from flox_node.environments.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path))


def test_nothing_is_left_of_a_folder_that_was_used(paths: Paths) -> None:
    with work.private_folder("a", paths) as folder:
        Path(folder, "token").write_text("secret")
    assert os.listdir(paths.work) == []


def test_a_realisation_wipes_what_killed_ones_of_its_environment_left(paths: Paths) -> None:
    killed = _left_by_a_killed_one("a", paths)
    of_another = _left_by_a_killed_one("b", paths)
    with work.private_folder("a", paths) as folder:
        assert not killed.exists()
        assert sorted(os.listdir(paths.work)) == sorted([os.path.basename(folder), of_another.name])


def test_a_sweep_wipes_what_killed_ones_left_and_nobody_asks_for_again(paths: Paths) -> None:
    assert work.sweep(paths)
    killed = _left_by_a_killed_one("a", paths)
    assert work.sweep(paths)
    assert not killed.exists()


def test_a_sweep_leaves_what_is_being_realised_and_tells(paths: Paths) -> None:
    killed = _left_by_a_killed_one("a", paths)
    with work.locked("b", paths, Deadline.after(3600)), work.private_folder("b", paths) as folder:
        assert not work.sweep(paths)
        assert os.path.isdir(folder)
        assert not killed.exists()
        with pytest.raises(DeadlineError), work.locked("b", paths, Deadline.after(0)):
            pass
    assert work.sweep(paths)


def _left_by_a_killed_one(name: str, paths: Paths) -> Path:
    folder = Path(paths.work, f"{name}-x1_y2z3w")
    (folder / "tmp").mkdir(parents=True)
    return folder
