"""The payload of the tests: a real one, built by the product out of the bed's store, our wheel and the Flox double.

It follows the sources: a changed file of the project gives another payload at the next call.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from flox_node import __version__
from flox_node.host.trees import remove_tree
from flox_node.payload import manifest as manifests
from flox_node.payload.archive import write_archive
from flox_node.payload.build import Recipe, build
from tests.bed import cache, store

REVISION = 1
FLOX_VERSION = "1.14.1"

_PROJECT = Path(__file__).parents[2]
_FLOX = _PROJECT / "tests/doubles/flox"
_KEPT = 3  # payloads in the cache; each is some 120 MB, and every change of the sources makes a new one
_in_use: list[int] = []  # descriptors that hold the locks of this run's payloads
_PYTHON_VERSION = store.PYTHON.removeprefix("python")


@functools.cache  # one run of tests is about one state of the tree
def folder() -> Path:
    """The payload of this tree as a folder, built if need be."""
    sources = {str(path.relative_to(_PROJECT)): _digest(path) for path in _sources()}
    made_of = [store.base().root.name, store.binary_cache().cache_dir.parent.name]
    recipe = {"sources": sources, "made_of": made_of, "revision": REVISION}
    built = cache.artefact("payload", recipe, _build)
    _in_use.append(_lock(built, fcntl.LOCK_SH))
    _prune(built)
    return built / "payload"


def archive() -> Path:
    """The same payload as one `.tar.zst`."""
    payload = folder()
    packed = payload.with_name("payload.tar.zst")
    if not packed.exists():
        with cache.locked("payload-archive"), cache.progress("payload.tar.zst"):
            partial = payload.with_name("partial.tar.zst")
            write_archive(payload, partial)
            partial.rename(packed)
    return packed


def manifest() -> dict[str, object]:
    """The payload's manifest."""
    document: dict[str, object] = json.loads((folder() / "manifest.json").read_text())
    return document


def other() -> Path:
    """A payload that holds the same and has another id, as a newer version would: what an upgrade goes to."""
    original = folder()
    copied = original.with_name("other")
    with cache.locked("payload-other"):
        if not copied.exists():
            partial = original.with_name("partial-other")
            remove_tree(partial)
            subprocess.run(["cp", "-al", original, partial], check=True)
            known = manifests.parse((original / manifests.NAME).read_bytes())
            sealed = manifests.seal(
                version=f"{known.version}+other",
                system=known.system,
                entry_points=known.entry_points,
                store_paths=known.store_paths,
                files=known.files,
            )
            (partial / manifests.NAME).unlink()
            (partial / manifests.NAME).write_bytes(manifests.dump(sealed))
            (partial / manifests.NAME).chmod(0o444)
            partial.rename(copied)
    return copied


def wheel(into: Path) -> Path:
    """This tree's wheel, built into the folder `into`."""
    _pip("wheel", "--no-deps", "--wheel-dir", str(into), str(_PROJECT))
    return next(into.glob("flox_node-*.whl"))


def _build(target: Path) -> None:
    root = target / "root"
    builder = store.extended(root, store.base())
    file = wheel(target)
    built = zipfile.ZipFile(file)
    shim = Path(built.extract("flox_node/_shim/flox-runtime-amd64", target))
    python, busybox = builder.paths["python3"], builder.paths["busybox"]
    base = store.Store(root, builder.paths)
    interpreter = f"{python}/bin/{store.PYTHON}"

    def dependencies(out: Path, path: str) -> None:
        with_wheels = target / "wheels"
        platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]
        needed: list[str] = tomllib.loads((_PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
        only = ["--only-binary=:all:", f"--python-version={_PYTHON_VERSION}", "--implementation=cp", *platforms]
        _pip("download", "--dest", str(with_wheels), *only, *needed)
        for dependency in sorted(with_wheels.iterdir()):
            zipfile.ZipFile(dependency).extractall(out / "lib")
        store.compile_python(base, interpreter, out, path)

    def flox_node(out: Path, path: str) -> None:
        names = [name for name in built.namelist() if not name.startswith("flox_node/_shim/")]
        built.extractall(out / "lib", names)
        store.compile_python(base, interpreter, out, path)
        folders = [f"{path}/lib", f"{builder.paths['dependencies']}/lib"]
        _program(out / "bin/flox-node", interpreter, folders, "flox_node.cli", "main")
        _program(out / "bin/flox-node-realise", interpreter, folders, "flox_node.environments.__main__", "realise_main")

    def flox(out: Path, path: str) -> None:
        shutil.copytree(_FLOX, out / "libexec", ignore=shutil.ignore_patterns("__pycache__"))
        store.compile_python(base, interpreter, out, path)
        programs = {"nix": f"{builder.paths['nix']}/bin", "git": f"{builder.paths['git']}/bin"}
        # Not part of the payload: what environments are made of comes from the binary cache.
        programs |= {"busybox": busybox, "activations": store.binary_cache().activations_store_path}
        (out / "share").mkdir()
        (out / "share/flox-double.json").write_text(json.dumps(programs))
        tools = ":".join([programs["git"], programs["nix"], f"{busybox}/bin"])
        # As the real CLI it brings its tools, and a static shell for Nix' sandbox (Debian's Nix looks for bash-static).
        script = [
            f"#!{busybox}/bin/sh",
            f"export PATH={tools}${{PATH:+:$PATH}} NIX_BIN={builder.paths['nix']}/bin/nix",
            'export NIX_CONFIG="$NIX_CONFIG',
            f'sandbox-paths = /bin/sh={busybox}/bin/busybox"',
            f'exec {interpreter} -IBS {path}/libexec/flox.py "$@"',
        ]
        store.write_program(out / "bin/flox", script)

    dependency_files = _digest(_PROJECT / "pyproject.toml")
    builder.add("dependencies", "flox-node-dependencies", [python, dependency_files], dependencies)
    own = [builder.paths["dependencies"], python, _digest(file)]
    builder.add("flox-node", f"flox-node-{__version__}", own, flox_node)
    flox_origin = [store.binary_cache().activations_store_path, *builder.paths.values(), *map(_digest, _files(_FLOX))]
    builder.add("flox", f"flox-{FLOX_VERSION}", flox_origin, flox)
    extended = builder.finish()
    build(
        Recipe(
            store_root=root,
            entry_points={
                "flox": f"{extended.paths['flox']}/bin/flox",
                "flox-node": f"{extended.paths['flox-node']}/bin/flox-node",
                "flox-node-realise": f"{extended.paths['flox-node']}/bin/flox-node-realise",
                "git": f"{extended.paths['git']}/bin/git",
                "nix": f"{extended.paths['nix']}/bin/nix",
                "nix-store": extended.nix_store,
            },
            shim=shim,
            version=__version__,
        ),
        target / "payload",
    )
    for rest in (root, target / "wheels", target / "flox_node"):
        remove_tree(rest)


def _program(path: Path, interpreter: str, folders: list[str], module: str, function: str) -> None:
    # -I -S: neither the node's PYTHON* variables nor its site-packages; -B: nothing is ever written into the store.
    lines = [f"#!{interpreter} -IBS", "import sys", f"sys.path += {folders!r}"]
    store.write_program(path, [*lines, f"from {module} import {function}", f"sys.exit({function}())"])


def _sources() -> Iterator[Path]:
    names = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
    yield from (_PROJECT / name for name in names if (_PROJECT / name).exists())
    for name in ("installer", "shim", "tests/doubles/flox"):
        yield from _files(_PROJECT / name)
    yield from (Path(__file__), Path(store.__file__))


def _files(top: Path) -> Iterable[Path]:
    skipped = re.compile(r"/(_shim|__pycache__|testdata)/|_test\.go$")
    return (path for path in sorted(top.rglob("*")) if path.is_file() and not skipped.search(str(path)))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _prune(current: Path) -> None:
    """Keep the newest payloads, and those that another run of tests uses."""
    others = [path for path in current.parent.glob("payload-*") if path != current]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT - 1 :]:
        with contextlib.suppress(BlockingIOError):
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
            os.close(lock)


def _lock(path: Path, operation: int) -> int:
    """Lock a folder until the descriptor is closed, at the latest when this process ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
