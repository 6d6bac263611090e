"""The Go modules' own tests; `make lint` runs gofmt and go vet on the same modules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.bed import golang

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["shim", "tests/doubles/flox-activations"])
def test_the_tests_of_a_go_module_pass(module: str) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    done = subprocess.run(
        [golang.go(), "test", "./..."], cwd=ROOT / module, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
