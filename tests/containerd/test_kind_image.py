"""The node image that daemonset/kind/node.Dockerfile makes of kind's: what is in it, and what its containerd serves."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import kind_image
from tests.bed.containerd import Containerd
from tests.bed.machine import CONFIG
from tests.conftest import FULL

SHIM = "/opt/flox-node/bin/flox-runtime"
OURS = ("nix", "opt/flox-node", "var/lib/flox-node", "etc/flox-node")


@pytest.mark.skipif(not FULL, reason="two minutes of building: in `make test-full`")
@pytest.mark.timeout(900)
def test_the_image_is_kind_s_with_us_in_it_and_serves_the_handler_at_its_first_start(
    bed: object, containerd: Callable[..., Containerd]
) -> None:
    made, base = kind_image.roots()
    changed = set(_changes(base, made))
    units = {path for path in changed if path.startswith("etc/systemd/system/")}
    assert changed - units == {CONFIG}
    assert all(Path(path).name.startswith("flox-node-") for path in units)

    daemon = containerd(kind_image.RELEASE, config="")
    (daemon.folder / "disk" / CONFIG).unlink()
    daemon.layers = f"{made}:{daemon.layers}"
    daemon.start()
    assert daemon.cri.handlers()["flox"]["options"] == {"BinaryName": SHIM, "SystemdCgroup": True}


def _changes(base: Path, made: Path) -> list[str]:
    """Files of `made` that are new or other than in `base`, besides the folders that are ours alone."""
    found = []
    for folder, folders, files in os.walk(made):
        here = Path(folder).relative_to(made)
        folders[:] = [name for name in folders if str(here / name) not in OURS]
        for name in files:
            theirs, ours = base / here / name, made / here / name
            if not os.path.lexists(theirs) or (not ours.is_symlink() and not filecmp.cmp(theirs, ours, shallow=False)):
                found.append(str(here / name))
    return found
