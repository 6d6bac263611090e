"""What holds for every room of the code."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import flox_node

ROOT = Path(flox_node.__file__).parent
PACKAGES = [
    "flox_node",
    *(
        f"flox_node.{name}"
        for name in sorted(
            each.name for each in pkgutil.iter_modules([str(ROOT)]) if each.ispkg and not each.name.startswith("_")
        )
    ),
]


def _bound(package: str) -> Iterator[tuple[str, str]]:
    """What the package's own module imports: the name that it binds, and where that comes from."""
    file = ROOT.joinpath(*package.split(".")[1:], "__init__.py")
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.ImportFrom):
            for each in statement.names:
                yield each.asname or each.name, f"{statement.module}.{each.name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_binds_another_thing_to_the_name_of_its_module(package: str) -> None:
    modules = {each.name for each in pkgutil.iter_modules([str(ROOT.joinpath(*package.split(".")[1:]))])}
    bound = {name: origin for name, origin in _bound(package) if name in modules}
    assert bound == {name: f"{package}.{name}" for name in bound}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_offers_is_there(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), f"{package} has no {name}"
