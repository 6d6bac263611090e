"""Fixtures of the tests that need a whole node."""

from collections.abc import Callable

import pytest

from tests.bed.box import NodeBox
from tests.bed.machine import Machine


@pytest.fixture
def node_box(machines: list[Machine]) -> Callable[..., NodeBox]:
    """A factory of booted node boxes, called as `NodeBox` is; they are removed after the test."""

    def make(containerd: str = "1.7", *, config: str | None = None) -> NodeBox:
        box = NodeBox(containerd, config=config)
        machines.append(box)
        return box.boot()

    return make


@pytest.fixture
def box(node_box: Callable[..., NodeBox], release: str) -> NodeBox:
    """A booted node box, once for each release."""
    return node_box(release)
