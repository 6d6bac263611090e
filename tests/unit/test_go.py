"""The Go modules' own tests; `make lint` runs gofmt and go vet on the same modules."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.bed import golang
from tests.conftest import FULL

ROOT = Path(__file__).parents[2]


def fuzz_targets() -> list[tuple[str, str]]:
    """Every fuzz target of the shim: its package's folder and its name."""
    return [
        (str(path.parent.relative_to(ROOT / "shim")), target)
        for path in sorted((ROOT / "shim").rglob("*_test.go"))
        for target in re.findall(r"^func (Fuzz\w+)", path.read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize("module", ["shim", "tests/doubles/flox-activations"])
def test_the_tests_of_a_go_module_pass(module: str) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    done = subprocess.run(
        [golang.go(), "test", "./..."], cwd=ROOT / module, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# The seeds of all of them run with the tests above.
@pytest.mark.parametrize(("package", "target"), fuzz_targets() if FULL else fuzz_targets()[:1])
def test_a_while_of_fuzzing_finds_nothing(package: str, target: str) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    done = subprocess.run(
        [golang.go(), "test", "-run=^$", f"-fuzz=^{target}$", f"-fuzztime={'60s' if FULL else '200x'}", "."],
        cwd=ROOT / "shim" / package, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
