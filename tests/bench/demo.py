"""What it takes until a program's next release answers: as a generation of its environment, beside an image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tests.bed.program import program
from tests.bench.rows import Measurement, Row, ratio, row
from tests.cluster.cluster import Cluster
from tests.cluster.update import CONTAINERD, updates


def update() -> Sequence[Row]:
    """Every release of the tests' program one after the other, both ways in turn, on a node that had the one before.

    An update of the packages that a program stands on is held to the goal; one of its own script, which an image has in
    a layer of its own, is told beside it.
    """
    pairs: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    releases = program().releases
    with Cluster((CONTAINERD,)) as cluster, updates(cluster) as running:
        for former, release in itertools.pairwise(releases):
            ours, theirs = running.by_environment(release).seconds, running.by_image(release).seconds
            pairs[former.interpreter != release.interpreter].append((ours, theirs))
    packages, script = (tuple(zip(*pairs[kind], strict=True)) for kind in (True, False))
    return (
        ratio("demo.update_vs_image_ratio", *packages, goal=0.3),
        row("demo.update_s", packages[0], unit="s", goal=None),
        row("demo.image_update_s", packages[1], unit="s", goal=None),
        ratio("demo.script_update_vs_image_ratio", *script, goal=None),
    )


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    update: (
        "demo.update_vs_image_ratio",
        "demo.update_s",
        "demo.image_update_s",
        "demo.script_update_vs_image_ratio",
    )
}
