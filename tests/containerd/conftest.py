"""Fixtures of the tests that need a real containerd, but no node around it."""

from collections.abc import Callable

import pytest

from tests.bed.containerd import Containerd
from tests.bed.machine import Machine


@pytest.fixture
def containerd(machines: list[Machine]) -> Callable[..., Containerd]:
    """A factory of daemons that are not started yet, called as `Containerd` is; they are removed after the test."""

    def make(release: str, *, config: str | None = None) -> Containerd:
        daemon = Containerd(release, config=config)
        machines.append(daemon)
        return daemon

    return make
