"""Placing on a node whose Nix only keeps the books (`fake_node`); tests/containerd has the same with the real one."""

import fcntl
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flox_node.errors import BusyError, CorruptError, OutsideError, RefusedError
from flox_node.host import Completed, Host, HostFiles
from flox_node.host.children import Finish
from flox_node.host.trees import remove_tree, walk
from flox_node.payload import Payload, open_payload
from flox_node.payload.build import Recipe, build
from flox_node.payload.nar import nar_of
from flox_node.payload.place import ROOTS, STAGING, place, survey, unplace
from tests.conftest import FULL
from tests.unit.fake_node import FakeProcesses
from tests.unit.payload import samples


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = tmp_path / "node"
    root.mkdir()
    return Host(HostFiles(root), FakeProcesses(root), None)  # type: ignore[arg-type]


@pytest.fixture
def payload(folder: Path) -> Payload:
    return open_payload(folder)


def test_all_of_a_payload_is_on_the_node_afterwards(host: Host, payload: Payload) -> None:
    done = place(host, payload)
    _assert_placed(host, payload)
    assert (done.copied, done.kept) == (3, 0)
    top = host.files.root / done.folder.lstrip("/")
    assert (top / "bin/flox-runtime").read_bytes() == b"\x7fELF the shim"
    assert os.access(top / "bin/flox-runtime", os.X_OK)
    assert os.readlink(top / "bin/tool") == f"{samples.TOOL}/bin/tool"
    assert sorted(os.listdir(top)) == ["bin", "images", "manifest.json"]


def test_an_archive_gives_the_same_node_as_a_folder(host: Host, folder: Path, archive: Path, tmp_path: Path) -> None:
    place(host, open_payload(folder))
    (tmp_path / "other").mkdir()
    other = Host(HostFiles(tmp_path / "other"), FakeProcesses(tmp_path / "other"), None)  # type: ignore[arg-type]
    place(other, open_payload(archive))
    trees = [nar_of(walk(node.files.root / part)) for node in (host, other) for part in ("nix/store", "opt")]
    assert trees[0].nar_hash == trees[2].nar_hash
    assert trees[1].nar_hash == trees[3].nar_hash


def test_what_is_placed_has_the_form_of_a_nix_store(host: Host, payload: Payload) -> None:
    place(host, payload)
    store = host.files.root / "nix/store"
    for path in store.rglob("*"):
        status = path.lstat()
        assert status.st_mtime == 1
        assert path.is_symlink() or status.st_mode & 0o7777 in (0o444, 0o555)


def test_placing_again_writes_nothing(host: Host, payload: Payload) -> None:
    place(host, payload)
    before = _times(host.files.root)
    done = place(host, payload)
    assert (done.copied, done.kept, done.written) == (0, 3, 0)
    assert _times(host.files.root) == before


def test_an_upgrade_copies_only_what_is_new(host: Host, folder: Path, tmp_path: Path) -> None:
    place(host, open_payload(folder))
    inode = os.stat(host.files.root / samples.LIBC.lstrip("/")).st_ino
    other = samples.make_recipe(tmp_path / "store2")
    manifest = build(replace(other, version="0.2.0"), tmp_path / "payload2")
    done = place(host, open_payload(tmp_path / "payload2"))
    assert (done.copied, done.kept) == (0, 2)
    assert os.stat(host.files.root / samples.LIBC.lstrip("/")).st_ino == inode
    assert sorted(host.files.listdir("/opt/flox-node/payloads")) == sorted(
        [manifest.id, open_payload(folder).manifest.id]
    )


def test_a_path_that_is_there_but_unknown_to_nix_is_kept_if_it_is_whole(host: Host, payload: Payload) -> None:
    place(host, payload)
    _forget(host)
    inode = os.stat(host.files.root / samples.LIBC.lstrip("/")).st_ino
    assert place(host, payload).copied == 0
    _assert_placed(host, payload)
    assert os.stat(host.files.root / samples.LIBC.lstrip("/")).st_ino == inode


def test_a_path_that_is_there_but_unknown_to_nix_is_replaced_if_it_is_damaged(host: Host, payload: Payload) -> None:
    place(host, payload)
    _forget(host)
    file = host.files.root / samples.LIBC.lstrip("/") / "lib/libc.so"
    file.chmod(0o644)
    file.write_bytes(b"half")
    assert place(host, payload).copied == 1
    _assert_placed(host, payload)


def test_a_path_that_nix_knows_but_that_is_gone_comes_back(host: Host, payload: Payload) -> None:
    place(host, payload)
    shutil.rmtree(host.files.root / samples.LIBC.lstrip("/"))
    assert [path.path for path in survey(host, payload.manifest).unregistered] == [samples.LIBC]
    assert place(host, payload).copied == 1
    _assert_placed(host, payload)


def test_a_path_that_nix_knows_is_not_registered_a_second_time(host: Host, payload: Payload) -> None:
    """Somebody else's build of the same path may differ, and its registered hash is the true one."""
    place(host, payload)
    database = host.files.root / "nix/var/nix/db/db.sqlite"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update ValidPaths set hash = 'sha256:other' where path = ?", (samples.LIBC,))
    shutil.rmtree(host.files.root / samples.LONE.lstrip("/"), ignore_errors=True)
    (host.files.root / samples.LONE.lstrip("/")).unlink(missing_ok=True)
    place(host, payload)
    with closing(sqlite3.connect(database)) as connection:
        [row] = connection.execute("select hash from ValidPaths where path = ?", (samples.LIBC,))
    assert row == ("sha256:other",)


def test_missing_roots_and_a_damaged_folder_are_made_again(host: Host, payload: Payload) -> None:
    done = place(host, payload)
    (host.files.root / ROOTS.lstrip("/") / f"payload-{payload.manifest.id}/tool").unlink()
    (host.files.root / done.folder.lstrip("/") / "manifest.json").unlink()
    found = survey(host, payload.manifest)
    assert (found.unregistered, found.roots, found.has_folder) == ((), ("tool",), False)
    place(host, payload)
    _assert_placed(host, payload)


def test_a_damaged_payload_leaves_the_store_without_it(host: Host, folder: Path) -> None:
    file = folder / "store" / Path(samples.TOOL).name / "bin/tool"
    file.chmod(0o755)
    file.write_bytes(b"#!evil")
    file.chmod(0o555)
    with pytest.raises(CorruptError, match=r"tool-1\.0"):
        place(host, open_payload(folder))
    assert host.files.listdir("/nix/store") == []
    assert host.files.listdir(STAGING) == []


def test_unplacing_takes_the_folder_and_the_roots_and_tolerates_that_they_are_gone(
    host: Host, payload: Payload
) -> None:
    place(host, payload)
    unplace(host, payload.manifest.id)
    unplace(host, payload.manifest.id)
    assert host.files.listdir("/opt/flox-node/payloads") == []
    assert host.files.listdir(ROOTS) == []
    assert len(host.files.listdir("/nix/store")) == 3


def test_a_store_behind_a_symlink_is_refused_before_anything_is_written(host: Host, payload: Payload) -> None:
    (host.files.root / "data").mkdir()
    (host.files.root / "nix").symlink_to("data")
    with pytest.raises(RefusedError, match="/nix on this node is a symlink"):
        place(host, payload)
    assert sorted(os.listdir(host.files.root)) == ["data", "nix"]


def test_two_placings_at_once_are_refused(host: Host, payload: Payload) -> None:
    staging = host.files.root / STAGING.lstrip("/")
    staging.mkdir(parents=True)
    descriptor = os.open(staging, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(BusyError, match="Another flox-node"):
            place(host, payload)
    finally:
        os.close(descriptor)
    place(host, payload)


def test_a_garbage_collection_that_does_not_end_is_named(
    host: Host, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flox_node.payload.place._GC_WAIT_S", 0.1)
    lock = host.files.root / "nix/var/nix/gc.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as collector:
        fcntl.flock(collector, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="garbage collection"):
            place(host, payload)
    place(host, payload)


def test_too_little_space_is_refused_before_anything_is_copied(
    host: Host, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flox_node.payload.place._SPARE_BYTES", 1 << 60)
    with pytest.raises(RefusedError, match="MiB are free"):
        place(host, payload)
    assert host.files.listdir("/nix/store") == []


def test_what_nix_says_when_it_cannot_register_is_shown(host: Host, payload: Payload) -> None:
    class Broken(FakeProcesses):
        def run(self, *_arguments: object, **_options: object) -> Completed:
            return Completed(1, b"", b"error: database disk image is malformed\n")

    with pytest.raises(OutsideError, match="disk image is malformed"):
        place(replace(host, processes=Broken(host.files.root)), payload)  # type: ignore[arg-type]
    place(host, payload)
    _assert_placed(host, payload)


class _WatchedNix(FakeProcesses):
    """Notes what was in the store when Nix was started, and whether it was given something to register."""

    seen: frozenset[str] = frozenset()
    given = False

    @contextmanager
    def started(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Iterator[Finish]:
        self.seen = frozenset(os.listdir(self._root / "nix/store"))
        with super().started(argv, env=env) as finish:

            def noted(data: bytes) -> Completed:
                self.given = True
                return finish(data)

            yield noted


@pytest.mark.parametrize("lacking", [samples.LONE, samples.LIBC])
def test_nix_starts_before_the_copying_where_its_own_paths_are_there(
    host: Host, payload: Payload, lacking: str
) -> None:
    place(host, payload)
    remove_tree(host.files.root / lacking.lstrip("/"))
    nix = _WatchedNix(host.files.root)
    place(replace(host, processes=nix), payload)  # type: ignore[arg-type]
    assert (os.path.basename(lacking) in nix.seen) == (lacking == samples.LIBC), "Nix needs the library"
    _assert_placed(host, payload)


def test_a_nix_that_waits_gets_nothing_to_register_when_the_copying_fails(
    host: Host, payload: Payload, folder: Path
) -> None:
    place(host, payload)
    lone = host.files.root / samples.LONE.lstrip("/")
    remove_tree(lone)
    remove_tree(folder / "store" / lone.name)
    (folder / "store" / lone.name).write_bytes(b"damaged")
    nix = _WatchedNix(host.files.root)
    with pytest.raises(CorruptError):
        place(replace(host, processes=nix), payload)  # type: ignore[arg-type]
    assert nix.seen
    assert not nix.given
    assert not lone.exists()


# kills


@pytest.mark.parametrize("name", ["payload", "payload.tar.zst"])
def test_a_kill_at_any_point_leaves_what_the_next_run_finishes(recipe: Recipe, tmp_path: Path, name: str) -> None:
    """Every operation on files is a point: the process dies right before the n-th. Every third n, or all with FULL."""
    build(recipe, tmp_path / name)
    payload = open_payload(tmp_path / name)
    root = tmp_path / "killed"
    at, killed = 0, True
    while killed:
        at += 1 if FULL else 3
        root.mkdir()
        host = Host(HostFiles(root), FakeProcesses(root), None)  # type: ignore[arg-type]
        killed = _killed_before(at, host, payload)
        _assert_nothing_half(host, payload)
        place(host, payload)
        _assert_placed(host, payload)
        assert host.files.listdir(STAGING) == []
        assert host.files.listdir("/opt/flox-node/payloads") == [payload.manifest.id]
        shutil.rmtree(root)
    assert at > 100, "the hook saw hardly anything: it does not kill where it should"


def _killed_before(at: int, host: Host, payload: Payload) -> bool:
    """Place in a child that dies right before its n-th file operation; False when it has fewer."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _arguments: object) -> None:
            nonlocal count
            if event in _OPERATIONS:
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            place(host, payload)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"placing failed in the child ({status})"
    return status != 0


_OPERATIONS = {
    "open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.utime", "fcntl.flock",
    "sqlite3.connect",
}  # fmt: skip


def _assert_nothing_half(host: Host, payload: Payload) -> None:
    """Whatever is in the store is whole, registered or not; a payload's folder is there as a whole or not at all."""
    for path in payload.manifest.store_paths:
        if host.files.lexists(path.path):
            assert nar_of(walk(host.files.real(path.path, follow=False))).nar_hash == path.nar_hash
    folder = host.files.root / "opt/flox-node/payloads" / payload.manifest.id
    if folder.exists():
        assert sorted(os.listdir(folder / "bin")) == ["flox-runtime", "nix-store", "tool"]
        assert (folder / "bin/flox-runtime").read_bytes() == b"\x7fELF the shim"
        assert survey(host, payload.manifest).complete


def _assert_placed(host: Host, payload: Payload) -> None:
    assert survey(host, payload.manifest).complete
    for path in payload.manifest.store_paths:
        assert nar_of(walk(host.files.real(path.path, follow=False))).nar_hash == path.nar_hash


def _forget(host: Host) -> None:
    with closing(sqlite3.connect(host.files.root / "nix/var/nix/db/db.sqlite")) as connection, connection:
        connection.execute("delete from ValidPaths")


def _times(root: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_ctime_ns for path in root.rglob("*") if not path.name.startswith("db.sqlite-")}
