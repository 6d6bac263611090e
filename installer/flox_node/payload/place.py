"""Placing a payload on a node: a kill or a power cut at any point leaves nothing that the next run cannot finish.

The order is what makes it safe:
 1. Nix' collector is kept out, and roots are written for what comes;
 2. every missing store path is copied into a staging folder of the store's own mount and checked while it is copied;
 3. everything becomes durable, with one call;
 4. each path is renamed into the store, where it is either whole or not there;
 5. the paths are registered with Nix; only now are they valid;
 6. the payload's own folder appears, written whole and renamed.
A path that is present but not registered was left by a kill between 4 and 5, or by somebody else: it is hashed, and
replaced unless it is what it should be.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from flox_node.atomic import HeldError, locked, sync_folder
from flox_node.errors import BusyError, OutsideError, RefusedError
from flox_node.host import Completed, Host, selinux
from flox_node.host.nixdb import names
from flox_node.host.trees import Sink, TreeWriter, mount_id, remove_tree, sync_file_system, walk, written_early
from flox_node.names import PREFIX
from flox_node.payload import manifest as manifests
from flox_node.payload.manifest import Manifest, StorePath
from flox_node.payload.nar import nar_of
from flox_node.payload.source import Item, Payload
from flox_node.payload.verify import receive

STORE = "/nix/store"
DATABASE = "/nix/var/nix/db/db.sqlite"
ROOTS = "/nix/var/nix/gcroots/flox-node"
STAGING = "/nix/var/flox-node/staging"

_SCHEMA = "/nix/var/nix/db/schema"
_GC_LOCK = "/nix/var/nix/gc.lock"
_GC_WAIT_S = 120.0
_SPARE_BYTES = 64 << 20  # what placing leaves free on the node's disk at least
# Nix's own settings must not depend on what the node's nix.conf says (build users that do not exist, another store).
NIX_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "NIX_CONF_DIR": "/nonexistent",
    "NIX_CONFIG": "build-users-group =\n",
    "NIX_REMOTE": "local",
}


@dataclass(frozen=True)
class Survey:
    """What of a payload a node lacks. All empty and true: placing it would change nothing.

    `store_is_empty`: no path at all is registered, whoever's it is.
    """

    unregistered: tuple[StorePath, ...]
    roots: tuple[str, ...]
    has_folder: bool
    store_is_empty: bool

    @property
    def complete(self) -> bool:
        """Whether the payload is wholly placed."""
        return not self.unregistered and not self.roots and self.has_folder


@dataclass(frozen=True)
class Placed:
    """What placing did. `folder` is the node's path of the payload's folder; `written` in bytes of NAR."""

    folder: str
    copied: int
    kept: int
    written: int


def folder_of(payload_id: str, prefix: str = PREFIX) -> str:
    """The node's folder of one payload."""
    return f"{prefix}/payloads/{payload_id}"


def survey(host: Host, manifest: Manifest, *, prefix: str = PREFIX) -> Survey:
    """Look what a node lacks of a payload; reads names and the database, no contents, and writes nothing."""
    registered = names(host.files.real(DATABASE))
    present = set(host.files.listdir(STORE))
    roots = _roots(host, manifest)
    folder = folder_of(manifest.id, prefix)
    placed = host.files.read_optional(f"{folder}/{manifests.NAME}")
    return Survey(
        unregistered=tuple(
            path for path in manifest.store_paths if path.path not in registered or path.name not in present
        ),
        roots=tuple(name for name, target in manifest.roots().items() if roots.get(name) != target),
        has_folder=placed is not None
        and placed == manifests.dump(manifest)
        and not changed_files(host, manifest, prefix=prefix),
        store_is_empty=not registered,
    )


def changed_files(host: Host, manifest: Manifest, *, prefix: str = PREFIX) -> tuple[str, ...]:
    """The files and links of the payload's folder that are gone or not what was placed, by size, mode and target."""
    folder = folder_of(manifest.id, prefix)
    changed = []
    for file in manifest.files:
        if file.path == manifests.REGISTRATION:
            continue  # stays in the payload
        status = host.files.lstat(f"{folder}/{file.path}")
        expected = (stat.S_IFREG | file.mode, file.size)
        if status is None or (status.st_mode, status.st_size) != expected:
            changed.append(f"{folder}/{file.path}")
    links = ((f"{folder}/bin/{name}", target) for name, target in manifest.entry_points.items())
    changed += [path for path, target in links if host.files.readlink(path) != target]
    return tuple(changed)


def damaged(host: Host, manifest: Manifest, *, prefix: str = PREFIX) -> tuple[str, ...]:
    """What of a placed payload is not what the manifest says, to the bit. Reads all of it."""
    folder = folder_of(manifest.id, prefix)
    found = [path.path for path in _not_whole(host, manifest.store_paths)]
    for file in manifest.files:
        content = host.files.read_optional(f"{folder}/{file.path}")
        wanted = file.path != manifests.REGISTRATION  # stays in the payload
        if wanted and (content is None or hashlib.sha256(content).hexdigest() != file.sha256):
            found.append(f"{folder}/{file.path}")
    return tuple(found)


def place(host: Host, payload: Payload, *, prefix: str = PREFIX, repair: bool = False) -> Placed:
    """Bring a payload onto the node: store paths, registration, roots, `<prefix>/payloads/<id>`.

    It may be run again after any failure, and costs next to nothing when all is there. `repair` looks into what is
    there, too, and replaces what is damaged. The caller holds the node's lock; a second placing at the same time is
    refused all the same.

    Raises:
        CorruptError: the payload is damaged; nothing of the damaged path is in the store.
        RefusedError: the node's store cannot take it (a symlink, too little space, a read-only file system).
        BusyError: another placing or a collection of garbage runs.
        OutsideError: Nix could not register the paths.
    """
    manifest = payload.manifest
    folder = folder_of(manifest.id, prefix)
    if not repair and survey(host, manifest, prefix=prefix).complete:
        return Placed(folder, copied=0, kept=len(manifest.store_paths), written=0)
    _refuse_unusable_store(host)
    try:
        for made in (STORE, STAGING, f"{ROOTS}/payload-{manifest.id}", "/nix/var/nix/db", f"{prefix}/payloads"):
            _make_folders(host, made)
        with _staging(host) as staging, _no_collection(host):
            found = survey(host, manifest, prefix=prefix)
            if found.store_is_empty:
                # Nix takes a database for made once its schema file is there, and refuses an empty one. A kill while
                # Nix wrote it, or a power cut that took the tables, would so stop every later run; without it, Nix
                # makes what lacks.
                host.files.remove(_SCHEMA)
            lacking = found.unregistered
            missing = _not_whole(host, manifest.store_paths if repair else lacking)
            _check_space(host, missing)
            with _registration(host, manifest, lacking, missing) as register:
                _write_roots(host, manifest)
                fresh = _fresh_folder(host, manifest, prefix)
                _copy(payload, missing, staging, fresh)
                _rename_into_store(host, missing, staging)
                register()
            _publish(fresh, manifest)
            selinux.label_tree(host.files.root, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise RefusedError(
                f"The payload cannot be written to this node: {error}.",
                remedy="Free disk space or make the file system writable, then run the command again.",
            ) from error
        raise
    return Placed(
        folder,
        copied=len(missing),
        kept=len(manifest.store_paths) - len(missing),
        written=sum(path.nar_size for path in missing),
    )


def unplace(host: Host, payload_id: str, *, prefix: str = PREFIX) -> None:
    """Take back a payload's folder and roots; its store paths stay for Nix' own collector. Gone already is fine."""
    folder = folder_of(payload_id, prefix)
    doomed = f"{prefix}/payloads/.{payload_id}.removed"
    remove_tree(host.files.real(doomed, follow=False))
    if host.files.lexists(folder):
        # Renamed first: a kill in the middle must not leave a payload that looks whole.
        os.rename(host.files.real(folder, follow=False), host.files.real(doomed, follow=False))
        remove_tree(host.files.real(doomed, follow=False))
    remove_tree(host.files.real(f"{ROOTS}/payload-{payload_id}", follow=False))


def _refuse_unusable_store(host: Host) -> None:
    for folder in ("/nix", STORE):
        if host.files.readlink(folder) is not None:
            raise RefusedError(
                f"{folder} on this node is a symlink, and Nix does not work with a store behind a symlink.",
                remedy="Replace it by a folder or a bind mount.",
            )


def _make_folders(host: Host, folder: str) -> None:
    parts = folder.split("/")
    for depth in range(2, len(parts) + 1):
        host.files.mkdir("/".join(parts[:depth]))


@contextmanager
def _staging(host: Host) -> Iterator[Path]:
    """An empty folder in the store's mount, ours alone; what a killed run left in it is swept.

    It lies beside the store and not in it: Nix' collector deletes everything in the store that is no valid path.
    """
    staging = host.files.real(STAGING)
    if mount_id(staging) != mount_id(host.files.real(STORE)):
        raise RefusedError(
            f"{STAGING} and {STORE} lie on different mounts, so nothing can be renamed from one to the other.",
            remedy="Mount all of /nix, not only /nix/store.",
        )
    try:
        with locked(staging, flags=os.O_RDONLY | os.O_DIRECTORY):
            _empty(staging)
            try:
                yield staging
            finally:
                _empty(staging)
    except HeldError as error:
        raise BusyError("Another flox-node is placing a payload on this node.") from error


def _empty(folder: Path) -> None:
    for name in os.listdir(folder):
        remove_tree(folder / name)


@contextmanager
def _no_collection(host: Host) -> Iterator[None]:
    """Keep Nix' garbage collector out: between rename and registration a path is garbage to it.

    This is Nix' own lock; a collector holds it exclusively, everybody who adds to the store holds it shared.
    """
    end = time.monotonic() + _GC_WAIT_S
    try:
        with locked(host.files.real(_GC_LOCK), shared=True, left=lambda: end - time.monotonic()):
            yield
    except HeldError as error:
        raise BusyError("A garbage collection of the Nix store runs on this node and does not end.") from error


def _check_space(host: Host, missing: tuple[StorePath, ...]) -> None:
    needed = sum(path.nar_size for path in missing) + _SPARE_BYTES
    status = os.statvfs(host.files.real(STORE))
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise RefusedError(
            f"The payload needs {needed >> 20} MiB below /nix, and {free >> 20} MiB are free.",
            remedy="Free disk space on this node, or mount a larger disk at /nix.",
        )


def _write_roots(host: Host, manifest: Manifest) -> None:
    folder = host.files.real(f"{ROOTS}/payload-{manifest.id}")
    there = _roots(host, manifest)
    for name, target in manifest.roots().items():
        if there.get(name) != target:
            if name in there:
                os.unlink(folder / name)
            os.symlink(target, folder / name)


def _roots(host: Host, manifest: Manifest) -> dict[str, str]:
    """The payload's roots on the node, by name."""
    folder = f"{ROOTS}/payload-{manifest.id}"
    real = host.files.real(folder)
    return {name: os.readlink(real / name) for name in host.files.listdir(folder)}


def _not_whole(host: Host, unregistered: tuple[StorePath, ...]) -> tuple[StorePath, ...]:
    """Those that must be copied: not there, or there with another content."""

    def is_whole(path: StorePath) -> bool:
        real = host.files.real(path.path, follow=False)
        try:
            found = nar_of(walk(real))
        except FileNotFoundError:
            return False
        return (found.nar_hash, found.nar_size) == (path.nar_hash, path.nar_size)

    return tuple(path for path in unregistered if not is_whole(path))


def _fresh_folder(host: Host, manifest: Manifest, prefix: str) -> Path:
    """The payload's folder as it will be, without its files, under a name that nobody looks at."""
    # Not in the staging folder: /opt may be another file system than /nix.
    payloads = host.files.real(f"{prefix}/payloads")
    for name in os.listdir(payloads):
        if name.startswith("."):
            remove_tree(payloads / name)
    fresh = payloads / f".{manifest.id}.new"
    for folder in (fresh, fresh / "bin", fresh / "images"):
        folder.mkdir()
        folder.chmod(0o755)
    (fresh / manifests.NAME).write_bytes(manifests.dump(manifest))
    for name, target in manifest.entry_points.items():
        (fresh / "bin" / name).symlink_to(target)
    return fresh


def _copy(payload: Payload, missing: tuple[StorePath, ...], staging: Path, fresh: Path) -> None:
    def receiver(item: Item) -> AbstractContextManager[Sink | None]:
        if isinstance(item, StorePath):
            return TreeWriter(staging / item.name)
        if item.path == manifests.REGISTRATION:
            return nullcontext()  # the manifest says the same
        return TreeWriter(fresh / item.path)

    with written_early(staging):
        receive(payload, receiver, {path.path for path in missing})
    sync_file_system(staging)
    if os.stat(fresh).st_dev != os.stat(staging).st_dev:
        sync_file_system(fresh)


def _rename_into_store(host: Host, missing: tuple[StorePath, ...], staging: Path) -> None:
    store = host.files.real(STORE)
    for path in missing:
        if os.path.lexists(store / path.name):
            os.rename(store / path.name, staging / f"replaced-{path.name}")
        os.rename(staging / path.name, store / path.name)
    sync_folder(store)


@contextmanager
def _registration(
    host: Host, manifest: Manifest, paths: tuple[StorePath, ...], missing: tuple[StorePath, ...]
) -> Iterator[Callable[[], None]]:
    """What registers the paths once they are in the store.

    Starting Nix takes as long as copying a few paths does. So where its own paths are there already, it starts at once
    and waits for its input, and without that it registers nothing.
    """
    if not paths:
        yield lambda: None
        return
    program = manifest.entry_points.get("nix-store")
    if program is None:
        raise RefusedError("The payload has no entry point nix-store, so nothing can register its store paths.")
    nix = host.processes.started([program, "--load-db"], env=NIX_ENVIRONMENT)
    needed = manifest.needed_by(program)
    with ExitStack() as stack:
        is_there = needed.isdisjoint(path.path for path in missing)
        waiting = stack.enter_context(nix) if is_there else None

        def register() -> None:
            # Only what was not valid before: Nix would overwrite the hash of a valid path that was built elsewhere.
            _require_registered((waiting or stack.enter_context(nix))(manifests.registration(paths)))

        yield register


def _require_registered(done: Completed) -> None:
    if done.returncode != 0:
        raise OutsideError(
            f"Nix could not register the payload: {done.stderr.decode(errors='replace').strip()[-500:]}",
            remedy="Check the disk and the Nix database below /nix/var/nix/db, then run the command again.",
        )


def _publish(fresh: Path, manifest: Manifest) -> None:
    final = fresh.with_name(manifest.id)
    if os.path.lexists(final):
        os.rename(final, fresh.with_name(f".{manifest.id}.replaced"))
    os.rename(fresh, final)
    sync_folder(final.parent)
    remove_tree(fresh.with_name(f".{manifest.id}.replaced"))
