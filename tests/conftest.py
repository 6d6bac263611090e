"""Fixtures of every tier that runs against the test bed."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.bed import cache, releases
from tests.bed.machine import Machine
from tests.bed.prepare import prepare

FULL = bool(os.environ.get("FLOX_NODE_FULL"))  # `make test-full`: every case, not one of each kind
_machines = pytest.StashKey[list[Machine]]()


@pytest.fixture(scope="session")
def bed(pytestconfig: pytest.Config) -> Path:
    """The cache of the prepared test bed. Asking for it prepares the bed, with its progress shown."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        prepare()
    return cache.folder()


@pytest.fixture(params=releases.DEFAULT, ids=lambda release: f"containerd-{release}")
def release(request: pytest.FixtureRequest) -> str:
    """The containerd releases that every behaviour of a node is shown with."""
    return str(request.param)


@pytest.fixture
def machines(request: pytest.FixtureRequest, bed: Path) -> Generator[list[Machine]]:
    """What a test adds here is removed after it; if the test fails, its logs are in the report."""
    added = request.node.stash.setdefault(_machines, [])
    yield added
    for machine in added:
        machine.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        for machine in item.stash.get(_machines, []):
            report.sections.append((f"Logs of {machine.folder.name}", machine.logs()))
    return report
