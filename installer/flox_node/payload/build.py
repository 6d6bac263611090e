"""Building a payload out of a Nix store: the closure of its entry points, the shim, the empty image, a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flox_node.errors import CorruptError, UsageError
from flox_node.host.files import HostFiles
from flox_node.host.nixdb import ValidPath, valid_paths
from flox_node.host.trees import TreeWriter, feed, remove_tree, walk
from flox_node.payload import manifest as manifests
from flox_node.payload.archive import compression_of, write_archive
from flox_node.payload.image import architecture_of, empty_image
from flox_node.payload.manifest import Manifest, PayloadFile, StorePath
from flox_node.payload.nar import NarHasher
from flox_node.payload.own import Own, build_own


@dataclass(frozen=True)
class Recipe:
    """What goes into a payload.

    `store_root` is the folder that holds `nix/store`; what is valid in it is said by its database, or by
    `registration` (a `nix-store --dump-db` file) where it has none. `entry_points` maps a name to a program's path
    below /nix/store; `extra_paths` are store paths that no entry point needs.
    `wheels` is a folder with the wheels of flox-node and of all it needs, for the interpreter `python` of the store:
    with them the payload has flox-node's own entry points too.
    """

    store_root: Path
    entry_points: Mapping[str, str]
    shim: Path
    version: str
    system: str = "x86_64-linux"
    extra_paths: tuple[str, ...] = ()
    registration: Path | None = None
    wheels: Path | None = None
    python: str = ""


def build(recipe: Recipe, destination: Path) -> Manifest:
    """Write the payload: a folder, or an archive where `destination` ends in .tar.zst or .tar.gz.

    The same recipe gives the same bytes. What was at `destination` is replaced only by a whole new payload.

    Raises:
        UsageError: the recipe names something that is not there.
        CorruptError: the store is damaged.
    """
    if destination.is_dir() and any(destination.iterdir()) and not (destination / manifests.NAME).is_file():
        raise UsageError(f"{destination} exists and is no payload.", remedy="Name a new folder, or an archive.")
    work = destination.with_name(f".{destination.name}.partial")
    remove_tree(work)
    work.mkdir(parents=True)
    try:
        manifest = _build_folder(recipe, work / "payload")
        if compression_of(destination) is None:
            remove_tree(destination)
            (work / "payload").rename(destination)
        else:
            write_archive(work / "payload", work / destination.name)
            (work / destination.name).replace(destination)
    finally:
        remove_tree(work)
    return manifest


def bundled_shim(system: str) -> Path:
    """The shim for a Nix system that this flox-node brings.

    Raises:
        UsageError: there is none for such a system.
    """
    return Path(__file__).parents[1] / "_shim" / f"flox-runtime-{architecture_of(system)}"


def read_registration(text: str) -> dict[str, ValidPath]:
    """The store paths in the form of `nix-store --dump-db`.

    Raises:
        CorruptError: it is something else.
    """
    lines = iter(text.splitlines())
    found: dict[str, ValidPath] = {}
    try:
        for path in lines:
            nar_hash, size, _deriver, count = next(lines), int(next(lines)), next(lines), int(next(lines))
            references = tuple(sorted(next(lines) for _ in range(count)))
            found[path] = ValidPath(path, "sha256:" + nar_hash.removeprefix("sha256:"), size, references)
    except (StopIteration, RuntimeError, ValueError) as error:
        raise CorruptError("The registration is damaged: it is not the output of nix-store --dump-db.") from error
    return found


def _build_folder(recipe: Recipe, folder: Path) -> Manifest:
    known = _known_paths(recipe)
    programs = {**recipe.entry_points, **({"python": recipe.python} if recipe.wheels else {})}
    tops = {manifests.store_path_of(target) for target in programs.values()} | set(recipe.extra_paths)
    unknown = sorted(tops - known.keys())
    if unknown:
        raise UsageError(f"{unknown[0]} is not a valid path of the store below {recipe.store_root}.")
    for name, target in programs.items():
        if not os.access(HostFiles(recipe.store_root).real(target), os.X_OK):
            raise UsageError(f"The entry point {name} ({target}) is not a program.")
    if not recipe.shim.is_file():
        raise UsageError(f"There is no shim at {recipe.shim}.", remedy="Name the built flox-runtime with --shim.")

    (folder / "store").mkdir(parents=True)
    own = Own({}, ())
    if recipe.wheels:
        own = build_own(recipe.wheels, recipe.python, recipe.store_root, known, folder / "store")
    references = {path: valid.references for path, valid in known.items()}
    wanted = sorted(manifests.closure(tops, references))
    store_paths = [_copy_store_path(recipe.store_root, known[path], folder / "store") for path in wanted]
    store_paths += own.store_paths
    files = {
        manifests.REGISTRATION: (manifests.registration(store_paths), 0o444),
        manifests.SHIM: (recipe.shim.read_bytes(), 0o555),
        manifests.EMPTY_IMAGE: (empty_image(recipe.system), 0o444),
    }
    manifest = manifests.seal(
        version=recipe.version,
        system=recipe.system,
        entry_points={**recipe.entry_points, **own.entry_points},
        store_paths=store_paths,
        files=[
            PayloadFile(name, hashlib.sha256(data).hexdigest(), len(data), mode) for name, (data, mode) in files.items()
        ],
    )
    for name, (data, mode) in [*files.items(), (manifests.NAME, (manifests.dump(manifest), 0o444))]:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)
    for made in (folder, *{(folder / name).parent for name in files}, folder / "store"):
        made.chmod(0o755)
    return manifest


def _known_paths(recipe: Recipe) -> dict[str, ValidPath]:
    if recipe.registration is not None:
        return read_registration(recipe.registration.read_text())
    known = valid_paths(recipe.store_root / "nix/var/nix/db/db.sqlite")
    if not known:
        raise UsageError(
            f"There is no Nix database below {recipe.store_root}.",
            remedy="Name the folder that holds nix/store and nix/var, or give a registration.",
        )
    return known


def _copy_store_path(root: Path, valid: ValidPath, store: Path) -> StorePath:
    path = StorePath(valid.path, valid.nar_hash, valid.nar_size, tuple(sorted(valid.references)))
    hasher = NarHasher()
    with TreeWriter(store / path.name) as writer:
        feed(walk(root / path.path.lstrip("/")), hasher, writer)
    if (hasher.nar_hash, hasher.nar_size) != (path.nar_hash, path.nar_size):
        raise CorruptError(
            f"{path.path} in the store below {root} is damaged: it has NAR hash {hasher.nar_hash}, "
            f"registered is {path.nar_hash}.",
            remedy="Repair the store with `nix-store --verify --check-contents --repair`.",
        )
    return path
