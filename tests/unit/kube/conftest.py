"""kubectl for the tests that hold our rendering against kustomize's, and what is said where it is not built."""

from pathlib import Path

import pytest

from tests import kustomize
from tests.cluster import binaries

_did_not_run = pytest.StashKey[int]()


@pytest.fixture
def kubectl(request: pytest.FixtureRequest) -> Path:
    program = kustomize.kubectl()
    if program is None:
        stash = request.config.stash
        stash[_did_not_run] = stash.get(_did_not_run, 0) + 1
        pytest.skip("kubectl is not built: see the last line")
    return program


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line of all, with and without -q."""
    if count := config.stash.get(_did_not_run, 0):
        print(
            f"daemonset/: {count} comparisons with `kubectl kustomize` did NOT run: kubectl {binaries.release()} "
            "is not built (`make cluster` builds it); tests/kustomize.py alone rendered the overlays",
            flush=True,
        )
