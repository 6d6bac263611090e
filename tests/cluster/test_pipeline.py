"""docs/examples/pipeline as it stands there: an application is built, tested, packed and deployed without images."""

import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bed import flox
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.gitlab import Executor
from tests.cluster.pipeline import GitLab, Pipeline, Runner, gitlab, helper_image
from tests.cluster.tools import tools
from tests.conftest import FULL
from tests.doubles.hub import catalog_package, lockfile

EXAMPLE = Path(__file__).parents[2] / "docs/examples/pipeline"
RUNNER = Runner.of(EXAMPLE / "values.yaml")
CACHE_PORT = 8081
ENVIRONMENTS = {"go": ["go"], "buildah": ["buildah"], "deploy": ["kubectl", "helm"]}
pytestmark = [pytest.mark.skipif(not FULL, reason="part of make test-full"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def environments(cluster: Cluster) -> Generator[FloxCluster]:
    """flox-node on both nodes, and the environments of the pipeline's jobs on their FloxHub."""
    made = tools()
    server = [sys.executable, "-m", "http.server", str(CACHE_PORT), "--bind", "127.0.0.1", "--directory"]
    for node in cluster.nodes:
        node.serve([*server, made.cache_dir])
    policy = flox.hub_policy({f"http://127.0.0.1:{CACHE_PORT}": made.public_key})
    with FloxCluster.installed(cluster, policy) as installed:
        for name, packages in ENVIRONMENTS.items():
            locked = [catalog_package(each, {"out": made.paths[each]}) for each in packages]
            installed.hub.publish("demo", name, lockfile(locked))
        yield installed


@pytest.fixture
def project(cluster: Cluster, environments: FloxCluster, tmp_path: Path) -> Generator[GitLab]:
    cluster.load(helper_image())
    cluster.kubectl("apply", "--filename", EXAMPLE / "account.yaml")
    with gitlab(cluster, EXAMPLE, tmp_path) as project:
        yield project
    cluster.try_kubectl("delete", "deployment/greeter", "service/greeter", "--now")
    cluster.kubectl("delete", "--filename", EXAMPLE / "account.yaml")


def test_a_pipeline_without_images(cluster: Cluster, project: GitLab, tmp_path: Path) -> None:
    jobs = Pipeline(EXAMPLE / ".gitlab-ci.yml", RUNNER, project.sha).jobs()
    assert [job.name for job in jobs] == ["build", "test", "image", "deploy"]
    here = {"nodeSelector": {"kubernetes.io/hostname": "worker-1"}}  # where the cache is; each is fetched once
    run = Executor(cluster).run
    logs = {}
    for number, job in enumerate(jobs, 1):
        ended = run(replace(job, pod={**job.pod, **here}))
        assert ended.status == "success", f"{job.name}:\n{ended.log}"
        logs[job.name] = ended.log
        if job.name == "image":
            # As if a registry had it: what has been built without a daemon runs on every node.
            cluster.load(project.artifact(number, "image.tar", tmp_path))
    assert "Failed to extract cache" in logs["build"]
    assert "Successfully extracted cache" in logs["test"]
    assert "ok  \texample.com/greeter" in logs["test"]
    assert "Hello, world!" in logs["image"], "a step of the build runs"
    assert "successfully rolled out" in logs["deploy"]
    assert "Hello, world!" in logs["deploy"], "the image's program answers"
