"""A hub in a thread, with one environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.hub import Hub, HubData, lockfile, serve, store_path_package

HELLO = "/nix/store/" + "b" * 32 + "-hello"


@pytest.fixture
def data(tmp_path: Path) -> HubData:
    """demo/hello with one generation."""
    data = HubData(tmp_path / "hub")
    data.publish("demo", "hello", lockfile([store_path_package("hello", HELLO)]))
    return data


@pytest.fixture
def hub(data: HubData) -> Iterator[Hub]:
    """The hub that serves it."""
    with serve(data) as running:
        yield running
