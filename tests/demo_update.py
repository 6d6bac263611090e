"""`make demo-update`: the next releases of a program reach a node as generations of its environment, and as images."""

from __future__ import annotations

import itertools
import sys

from tests.bed.prepare import prepare
from tests.bed.program import PORT, Release, program
from tests.cluster import binaries
from tests.cluster.cluster import Cluster
from tests.cluster.update import CONTAINERD, Update, updates


def main() -> int:
    """Show each update beside its counterpart; 0 when every release answered."""
    prepare()
    binaries.build(binaries.release())
    made = program()
    _say(
        f"A cluster of one node: Kubernetes {binaries.release()}, containerd {CONTAINERD}, flox-node on it, a FloxHub, "
        "a registry. A web application of Python answers with the number of its release: one of an environment, one "
        f"of an image, both on port {PORT}."
    )
    with Cluster((CONTAINERD,)) as cluster, updates(cluster) as running:
        for former, release in itertools.pairwise(made.releases):
            _say(f"Release {release.number}: {_what_changes(former, release)}.")
            ours, theirs = running.by_environment(release), running.by_image(release)
            _show("environment", ours)
            _show("image", theirs)
            print(f"    {'ratio':12} {ours.seconds / theirs.seconds:5.2f}", flush=True)
    return 0


def _what_changes(former: Release, release: Release) -> str:
    return (
        "the application"
        if former.interpreter == release.interpreter
        else "the application and the Python that it runs on"
    )


def _show(kind: str, update: Update) -> None:
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in update.steps.items())
    print(f"    {kind:12} {update.seconds:5.1f} s: {steps}", flush=True)


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
