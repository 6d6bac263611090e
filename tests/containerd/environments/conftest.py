"""A node with a real store, and a hub that holds demo/hello with one generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import store
from tests.bed.scope import Scope
from tests.containerd.environments.store_node import StoreNode
from tests.doubles.hub import Hub, HubData, lockfile, serve, store_path_package


@pytest.fixture
def data(tmp_path: Path) -> HubData:
    """The hub's folder, empty."""
    return HubData(tmp_path / "hub")


@pytest.fixture
def hub(bed: Path, data: HubData) -> Iterator[Hub]:
    """The hub; it serves the bed's binary cache too."""
    with serve(data, cache=store.binary_cache().cache_dir) as running:
        yield running


@pytest.fixture
def node(hub: Hub, data: HubData) -> Iterator[StoreNode]:
    """A node of the test's own, whose policy names the hub."""
    scope = Scope("store")
    try:
        root = scope.folder / "root"
        root.mkdir()
        node = StoreNode.copy(root)
        node.policy(hub.git_url)
        data.publish("demo", "hello", lockfile([store_path_package("hello", node.hello)]))
        yield node
        node.stop()
    finally:
        scope.close()
