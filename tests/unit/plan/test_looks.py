"""How often a run looks at the node: what one look found is handed on, and only what protects is looked at again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flox_node.containerd.config import effective
from flox_node.payload import Payload
from flox_node.plan import StepResult, install, preview
from flox_node.settings import Settings
from tests.unit.fake_node import FakeNode

SETTINGS = Settings()


def _ignore(_: StepResult) -> None:
    pass


@contextmanager
def _counted_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The roots of the configurations that the product models; the fake containerd's own do not count."""
    loaded: list[str] = []

    def counting(load: Callable[..., Any]) -> Callable[..., Any]:
        def counted(root: str, *arguments: Any) -> Any:
            loaded.append(root)
            return load(root, *arguments)

        return counted

    real = effective.load
    with monkeypatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("flox_node.") and getattr(module, "load", None) is real:
                patch.setattr(module, "load", counting(real))
        yield loaded


@pytest.mark.parametrize(
    ("run", "installed", "calls", "models"), [("install", False, 3, 9), ("install", True, 1, 2), ("plan", True, 1, 2)]
)
def test_a_run_asks_the_cri_and_models_the_configuration_no_more_often_than_it_must(
    node: FakeNode,
    payload: Payload,
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    installed: bool,
    calls: int,
    models: int,
) -> None:
    if installed:
        install(node.host, payload, SETTINGS, _ignore)
    node.containerd.status_calls = 0
    with _counted_models(monkeypatch) as loaded:
        if run == "install":
            install(node.host, payload, SETTINGS, _ignore)
        else:
            preview(node.host, payload, SETTINGS)
    print(f"{run}, {'installed' if installed else 'fresh'}: {node.containerd.status_calls} CRI, {len(loaded)} models")
    assert node.containerd.status_calls <= calls
    assert len(loaded) <= models
