from pathlib import Path

import pytest

from flox_node.payload.build import Recipe, build
from tests.unit.payload import samples


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return samples.with_lone(samples.make_recipe(tmp_path / "store"))


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> Path:
    """A payload as a folder."""
    build(recipe, tmp_path / "payload")
    return tmp_path / "payload"


@pytest.fixture(params=[".tar.zst", ".tar.gz"])
def archive(request: pytest.FixtureRequest, recipe: Recipe, tmp_path: Path) -> Path:
    """The same payload as an archive."""
    path = tmp_path / f"payload{request.param}"
    build(recipe, path)
    return path
