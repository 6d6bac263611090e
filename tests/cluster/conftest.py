"""Fixtures of the tests that need a whole cluster, and what is said when its programs are not built."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.cluster import Cluster
from tests.cluster.objects import Object
from tests.conftest import FULL

_cluster = pytest.StashKey[Cluster]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tier out where its programs are not built; the run's last line says so."""
    tier = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    release = binaries.release()
    missing = [] if FULL else binaries.missing(release)
    if tier and missing:
        reason = (
            f"did NOT run: the cluster tier needs Kubernetes {release}, of which {', '.join(missing)} are not built; "
            "`make test-full` builds them, and so does `make cluster` (a quarter of an hour on two idle cores)"
        )
        for item in tier:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster(bed: Path, pytestconfig: pytest.Config) -> Generator[Cluster]:
    """A cluster of two nodes, worker-1 with containerd 1.7 and worker-2 with 2.1, one for all tests of the session."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        binaries.build(binaries.release())
    with Cluster() as cluster:
        pytestconfig.stash[_cluster] = cluster
        yield cluster
        del pytestconfig.stash[_cluster]


@pytest.fixture
def applied(cluster: Cluster) -> Generator[Callable[..., None]]:
    """Apply objects and delete them after the test."""
    objects: list[Object] = []

    def apply(*more: Object) -> None:
        objects.extend(more)
        cluster.apply(*more)

    yield apply
    if objects:
        cluster.delete(*objects)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    cluster = item.config.stash.get(_cluster, None)
    if report.when == "call" and report.failed and cluster is not None:
        report.sections.append(("Logs of the cluster", cluster.logs()))
    return report
