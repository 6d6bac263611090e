"""The payload of the tests: a real one, built by the product out of the bed's store, our wheel and the Flox double.

It follows the sources: a changed file of the project gives another payload at the next call.
"""

import functools
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

from flox_node import __version__
from flox_node.host.trees import remove_tree
from flox_node.payload import manifest as manifests
from flox_node.payload.archive import write_archive
from flox_node.payload.build import Recipe, build
from tests.bed import cache, project, store

REVISION = 2
FLOX_VERSION = "1.14.1"

_FLOX = "tests/doubles/flox"
_KEPT = 3  # payloads in the cache; each is some 120 MB, and every change of the sources makes a new one


@functools.cache  # one run of tests is about one state of the tree
def folder() -> Path:
    """The payload of this tree as a folder, built if need be."""
    key = {"sources": project.package(), "store": flox_store().root.name, "revision": REVISION}
    return cache.newest("payload", key, _build, _KEPT) / "payload"


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
            (partial / manifests.NAME).unlink()
            (partial / manifests.NAME).write_bytes(resealed((original / manifests.NAME).read_bytes()))
            (partial / manifests.NAME).chmod(0o444)
            partial.rename(copied)
    return copied


def resealed(manifest: bytes) -> bytes:
    """The manifest of a payload with the same content, and another version and id."""
    known = manifests.parse(manifest)
    return manifests.dump(
        manifests.seal(
            version=f"{known.version}+other",
            system=known.system,
            entry_points=known.entry_points,
            store_paths=known.store_paths,
            files=known.files,
        )
    )


def recipe(wheels: Path) -> Recipe:
    """What the payload is made of. The wheels, which hold the shim too, are put into the new folder `wheels`."""
    origin = flox_store()
    shutil.copytree(project.payload_wheels(store.PYTHON.removeprefix("python")), wheels)
    shim = zipfile.ZipFile(project.wheel(wheels)).extract("flox_node/_shim/flox-runtime-amd64", wheels)
    return Recipe(
        store_root=origin.root,
        entry_points={
            "flox": f"{origin.paths['flox']}/bin/flox",
            "git": f"{origin.paths['git']}/bin/git",
            "nix": f"{origin.paths['nix']}/bin/nix",
            "nix-store": origin.nix_store,
            "busybox": f"{origin.paths['busybox']}/bin/busybox",
        },
        shim=Path(shim),
        version=__version__,
        wheels=wheels,
        python=f"{origin.paths['python3']}/bin/python3",
    )


def flox_store() -> store.Store:
    """The bed's store with the double of the Flox CLI in it: all of a payload but flox-node itself."""
    made_of = [store.base().root.name, store.binary_cache().cache_dir.parent.name]
    recipe = {"flox": project.digests(_FLOX), "made_of": made_of, "code": project.digests("tests/bed/payload.py")}
    return store.load(cache.artefact("flox-store", recipe, _build_flox_store))


def _build_flox_store(root: Path) -> None:
    builder = store.extended(root, store.base())
    interpreter, busybox = f"{builder.paths['python3']}/bin/{store.PYTHON}", builder.paths["busybox"]

    def flox(out: Path, path: str) -> None:
        shutil.copytree(project.ROOT / _FLOX, out / "libexec", ignore=shutil.ignore_patterns("__pycache__"))
        store.compile_python(store.Store(root, {}), interpreter, out, path)
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

    origin = [store.binary_cache().activations_store_path, builder.paths, project.digests(_FLOX)]
    builder.add("flox", f"flox-{FLOX_VERSION}", origin, flox)
    store.save(builder.finish())


def _build(target: Path) -> None:
    wheels = target / "wheels"
    build(recipe(wheels), target / "payload")
    remove_tree(wheels)
