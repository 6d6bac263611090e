"""What a CI job has of Flox in seconds, with the calls of GitLab's runner on a real cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.rows import Measurement, Row, row
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.gitlab import HELPER, Executor, Job, helper_image

ROUNDS = 7


def job() -> Sequence[Row]:
    """A job whose environment is on the node beside the same job in an image that is there, with the handler runc; and
    one that names an environment that does not exist, until its author has the reason.
    """
    extra: list[float] = []
    refusals: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Cluster() as cluster:
        cluster.load(helper_image(Path(folder) / "helper.tar"))
        with FloxCluster.installed(cluster):
            run = Executor(cluster).run
            for number in range(ROUNDS + 1):
                flox = run(Job(f"flox-{number}", "true"))
                plain = run(Job(f"plain-{number}", "true", image=HELPER, pod={"runtimeClassName": None}))
                refused = run(Job(f"refused-{number}", "true", "ci/nothing"))
                assert (flox.status, plain.status, refused.status) == ("success", "success", "system failure")
                extra.append(flox.seconds - plain.seconds)
                refusals.append(refused.seconds)
    return (
        row("ci.job_extra_s", extra[1:], unit="s", goal=0.5),  # the first one fetches the environment
        row("ci.refusal_s", refusals[1:], unit="s", goal=10),
    )


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {job: ("ci.job_extra_s", "ci.refusal_s")}
