"""The examples of the page for authors of pods run as they stand there, container by container."""

from __future__ import annotations

import pytest

from tests.containerd.test_shim_runc import (
    Node,
    built,  # noqa: F401 - a fixture
    node,  # noqa: F401 - a fixture
)
from tests.unit.test_pods_page import EXAMPLES


@pytest.mark.parametrize("pod", EXAMPLES, ids=lambda pod: str(pod["metadata"]["name"]))
def test_an_example_runs(node: Node, pod: dict[str, dict[str, object]]) -> None:  # noqa: F811
    annotations = pod["metadata"]["annotations"]
    assert isinstance(annotations, dict)
    environment, _, generation = annotations["flox.dev/environment"].partition(":")
    mode = annotations.get("flox.dev/activate-mode", "run")
    node.resolve(environment=environment, generation=int(generation or 3), mode=mode)
    flox = {name.removeprefix("flox.dev/"): value for name, value in annotations.items()}
    sandbox = node.sandbox(**flox)
    assert sandbox.create() == 0, sandbox.error
    containers = pod["spec"]["containers"]
    assert isinstance(containers, list)
    for wanted in containers:
        container = node.container(sandbox, *wanted.get("command", ["/of-the-image"]))
        named = {**container.config["annotations"], "io.kubernetes.cri.container-name": wanted["name"]}
        node.edit(container, annotations=named)
        if "command" in wanted:
            assert "hello from" in container.run().wait()
        else:
            before = container.config
            container.create()
            assert container.config == before
