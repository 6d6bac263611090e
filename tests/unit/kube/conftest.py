"""kubectl for the tests that hold our rendering against kustomize's."""

from pathlib import Path

import pytest

from tests import kustomize
from tests.cluster import binaries


@pytest.fixture
def kubectl() -> Path:
    program = kustomize.kubectl()
    if program is None:
        pytest.skip(
            f"did NOT run: kubectl {binaries.release()} is not built (`make cluster` builds it); "
            "tests/kustomize.py alone rendered the overlays of daemonset/"
        )
    return program
