"""Fixtures of every tier that runs against the test bed, and the last lines of a run: what did not run, and why.

A test that cannot run here skips with a reason that begins with "did NOT run"; nothing else has to be done to be told.
"""

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.bed import cache, releases
from tests.bed.machine import Machine
from tests.bed.prepare import prepare

# What is generated is judged by what it shows, not by how long a busy machine takes for it.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_did_not_run: Counter[str] = Counter()

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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what could not run; with several workers their reports arrive here, their output does not."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith("did NOT run"):
            _did_not_run[reason] += 1


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last lines of all, with and without -q, whatever else ran."""
    if not hasattr(config, "workerinput"):
        for reason, count in _did_not_run.items():
            print(f"{count} tests {reason}", flush=True)
