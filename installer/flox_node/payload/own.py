"""flox-node's own store paths: the wheels of one version, unpacked for the payload's Python and compiled by it."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flox_node.errors import UsageError
from flox_node.host.processes import Processes
from flox_node.payload.manifest import StorePath
from flox_node.payload.storepath import path_for, settle

_REVISION = 2  # of what is made of the same wheels and the same Python
_PROGRAMS = {
    "flox-node": ("flox_node.cli", "main"),
    "flox-node-realise": ("flox_node.environments.__main__", "realise_main"),
}
_SHIMS = "flox_node/_shim/"
_TIMEOUT_S = 600.0

# Nothing is ever compiled on a node. unchecked-hash: every file of a store has the same time. A wheel for another
# Python, or one that lacks a wheel it needs, does not load here and now instead of on a node.
_COMPILE = """
import compileall, importlib, pkgutil, py_compile, sys
unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
for folder, path in zip(sys.argv[1::2], sys.argv[2::2]):
    if not compileall.compile_dir(folder, quiet=1, stripdir=folder, prependdir=path, invalidation_mode=unchecked):
        sys.exit(f"{folder} cannot be compiled")
sys.path += [f"{folder}/lib" for folder in sys.argv[1::2]]
for module in pkgutil.iter_modules(sys.path[-2:]):
    importlib.import_module(module.name)
"""


@dataclass(frozen=True)
class Own:
    """flox-node in a payload: its programs by name, and the store paths that are not in any store yet."""

    entry_points: Mapping[str, str]
    store_paths: tuple[StorePath, ...]


def build_own(wheels: Path, python: str, store_root: Path, known: Iterable[str], store: Path) -> Own:
    """Make store paths of the wheels in the folder `wheels` (flox-node's, and all it needs) in the folder `store`.

    `python` is an interpreter in the store below `store_root`, whose paths are `known`. It must run on this machine.

    Raises:
        UsageError: the wheels are not those of one flox-node for this Python.
    """
    files = sorted(wheels.glob("*.whl"))
    mine = [file for file in files if file.name.startswith("flox_node-")]
    if len(mine) != 1:
        raise UsageError(f"{wheels} holds {len(mine)} wheels of flox-node, not one.")
    others = [file for file in files if file not in mine]
    version = mine[0].name.split("-")[1]
    origin = [_REVISION, python, {file.name: _sha256(file) for file in others}]
    libraries = path_for("flox-node-dependencies", origin)
    program = path_for(f"flox-node-{version}", [libraries, _sha256(mine[0])])
    # Where the store's Python sees it too: it is run with the root that it was made for.
    (store_root / "tmp").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store_root / "tmp") as scratch:
        trees = {path: Path(scratch) / path.rpartition("/")[2] for path in (libraries, program)}
        for path, tree in trees.items():
            (tree / "lib").mkdir(parents=True)
            for file in mine if path == program else others:
                _unpack(file, tree / "lib")
        _compile(Processes(store_root), python, {tree.relative_to(store_root): path for path, tree in trees.items()})
        for name, (module, function) in _PROGRAMS.items():
            _write_program(
                trees[program] / "bin" / name, python, [f"{program}/lib", f"{libraries}/lib"], module, function
            )
        names = {*known, libraries}
        store_paths = tuple(settle(tree, path, names, store) for path, tree in trees.items())
    return Own({name: f"{program}/bin/{name}" for name in _PROGRAMS}, store_paths)


def _unpack(wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into, [name for name in archive.namelist() if not name.startswith(_SHIMS)])


def _compile(processes: Processes, python: str, trees: Mapping[Path, str]) -> None:
    """Compile and load the modules of `trees`, below the store's root; they map to the store paths they will be at."""
    words = [word for tree, path in trees.items() for word in (f"/{tree}", path)]
    # -I -S: neither the variables nor the site-packages of this machine; -B: loading must not compile in another way.
    done = processes.run([python, "-IBS", "-c", _COMPILE, *words], timeout=_TIMEOUT_S)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise UsageError(f"The wheels do not serve {python}:\n{said}", remedy="Give the wheels for this Python.")


def _write_program(file: Path, python: str, folders: Iterable[str], module: str, function: str) -> None:
    # -B: nothing is ever written into the store.
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!{python} -IBS\n{program_text(folders, module, function)}")
    file.chmod(0o755)


def program_text(folders: Iterable[str], module: str, function: str) -> str:
    """What a program of ours is, for its interpreter: `function` of `module`, which lies in one of `folders`."""
    lines = (
        "import gc, sys",
        f"sys.path += {list(folders)!r}",
        "gc.disable()",  # what is loaded stays: looking for garbage in it is a tenth of the whole start
        f"from {module} import {function}",
        "gc.freeze()",
        "gc.enable()",
        f"sys.exit({function}())",
    )
    return "".join(f"{line}\n" for line in lines)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
