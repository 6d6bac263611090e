from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flox_node.environments import views
from flox_node.environments.paths import Paths

USED, UNUSED = "a" * 32, "b" * 32


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Two views of the release before, one of which a running pod has."""
    paths = Paths(str(tmp_path))
    for key in (USED, UNUSED):
        package = Path(paths.views, key, "store/package")
        package.mkdir(parents=True)
        (package / "file").write_text("content")
        (package / "link").symlink_to("/etc")
        package.chmod(0o555)
    os.link(f"{paths.views}/{UNUSED}/store/package/file", tmp_path / "the-stores-own")
    Path(paths.pods).mkdir(parents=True)
    record("old", {"view": f"/nix/var/flox-node/views/{USED}"}, paths)
    record("new", {}, paths)
    return paths


def record(name: str, resolution: object, paths: Paths) -> None:
    Path(paths.pods, f"{name}.json").write_text(json.dumps({"resolution": resolution}))


def test_a_view_stays_while_a_pod_of_the_release_before_has_it(paths: Paths, tmp_path: Path) -> None:
    assert views.sweep(paths) == [UNUSED]
    assert os.listdir(paths.views) == [USED]
    assert (tmp_path / "the-stores-own").read_text() == "content"
    os.unlink(f"{paths.pods}/old.json")
    assert views.sweep(paths) == [USED]
    assert not os.path.exists(paths.views)
    assert views.sweep(paths) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"resolution": 3}'])
def test_nothing_goes_while_a_record_cannot_be_read(paths: Paths, content: str) -> None:
    Path(paths.pods, "new.json").write_text(content)
    assert views.sweep(paths) == []
    assert sorted(os.listdir(paths.views)) == [USED, UNUSED]
