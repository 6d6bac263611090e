"""This tree as the bed builds it: its files, its wheel, and the wheels that its payload needs."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.bed import cache

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "daemonset/requirements"
_PACKAGE = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "installer", "shim")


def digests(*names: str) -> dict[str, str]:
    """What these files, and the files in these folders, hold: a digest for each path in the tree."""
    found = {}
    for name in names:
        for path in _files(ROOT / name):
            found[str(path.relative_to(ROOT))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def package() -> dict[str, str]:
    """The digests of all that the wheel is made of."""
    return digests(*_PACKAGE)


def wheel(into: Path) -> Path:
    """This tree's wheel, built into the folder `into`."""
    _pip("wheel", "--no-deps", "--wheel-dir", str(into), str(ROOT))
    return next(into.glob("flox_node-*.whl"))


def payload_wheels(python: str) -> Path:
    """The folder of the wheels that flox-node needs on nodes, for one Python ("3.13"), downloaded if need be."""
    required = REQUIREMENTS / "payload.txt"

    def download(folder: Path) -> None:
        platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]
        only = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
        _pip("download", "--no-deps", "--require-hashes", "--dest", str(folder), *only, "-r", str(required))

    return cache.artefact("wheels", {"required": required.read_text(), "python": python}, download)


def _files(top: Path) -> Iterable[Path]:
    if top.is_file():
        return [top]
    skipped = re.compile(r"/(_shim|__pycache__|testdata)/|_test\.go$")
    return (path for path in sorted(top.rglob("*")) if path.is_file() and not skipped.search(str(path)))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
