"""The lives of `tests/unit/plan/test_lives.py`, with what the real containerds make of both nodes' files at every step.

The nodes are fake ones; `tests/node/test_lives.py` has a few such lives on real ones.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from flox_node.payload import Payload
from tests.bed import releases
from tests.conftest import FULL
from tests.containerd.dumps import Dump, dump, version
from tests.containerd.test_neighbours import is_live, without_us
from tests.unit.plan.conftest import built
from tests.unit.plan.test_lives import Life, run_lives

RELEASES = (*releases.DEFAULT, *(releases.NEWER if FULL else ()))
LIVES = 100 if FULL else 8
FOLDER = "/etc/containerd"


@functools.cache
def by_version() -> dict[str, str]:
    return {str(version(release)): release for release in RELEASES}


class DumpedLife(Life):
    def _ask_the_daemons(self) -> None:
        ours, control = map(self._dump, self.roots)
        assert (control.error, control.cri_is_dead) == ("", False), "the model says that it loads"
        assert (ours.error, ours.cri_is_dead) == ("", False)
        assert without_us(ours) == without_us(control)
        if self.installed and self._told().well:
            assert is_live(ours)

    def _dump(self, root: Path) -> Dump:
        """The files lie elsewhere than they say."""
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "containerd"
            shutil.copytree(root / FOLDER.lstrip("/"), files)
            for path in files.rglob("*.toml"):
                path.write_text(path.read_text().replace(f"{FOLDER}/", f"{files}/"))
            return dump(by_version()[self.release], files / "config.toml")


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return built(tmp_path, "0.1.0")


@pytest.mark.timeout(7200)
def test_what_the_model_says_of_a_life_the_containerds_say(payload: Payload, bed: Path) -> None:
    DumpedLife.payload = payload
    DumpedLife.releases = tuple(by_version())
    run_lives(DumpedLife, LIVES)
