"""The node's files: symlinks stay inside the host root, and a write is seen as a whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from flox_node.host import HostFiles
from flox_node.host.files import ConcurrentWriteError


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    (tmp_path / "etc").mkdir()
    return HostFiles(tmp_path)


def test_an_absolute_symlink_of_the_node_stays_inside_the_host_root(files: HostFiles) -> None:
    (files.root / "mnt/nix").mkdir(parents=True)
    (files.root / "nix").symlink_to("/mnt/nix")
    assert files.real("/nix/store") == files.root / "mnt/nix/store"


def test_dots_cannot_climb_out_of_the_host_root(files: HostFiles) -> None:
    (files.root / "etc/up").symlink_to("../../../../etc")
    assert files.real("/etc/up/../../passwd") == files.root / "passwd"
    assert files.real("/etc/up/shadow") == files.root / "etc/shadow"


def test_a_loop_of_symlinks_is_an_error_and_not_a_hang(files: HostFiles) -> None:
    (files.root / "a").symlink_to("b")
    (files.root / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as error:
        files.real("/a")
    assert error.value.errno == errno.ELOOP


def test_a_replaced_file_keeps_its_mode_owner_and_extended_attributes(files: HostFiles) -> None:
    path = files.root / "etc/config.toml"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 12, 34)
    os.setxattr(path, "user.origin", b"admin")
    files.write_atomic("/etc/config.toml", b"new", mode=0o600)
    status = path.stat()
    assert path.read_bytes() == b"new"
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 12, 34)
    assert os.getxattr(path, "user.origin") == b"admin"


def test_a_symlinked_file_is_replaced_where_it_leads(files: HostFiles) -> None:
    (files.root / "etc/real.toml").write_bytes(b"old")
    (files.root / "etc/config.toml").symlink_to("/etc/real.toml")
    files.write_atomic("/etc/config.toml", b"new")
    assert (files.root / "etc/config.toml").is_symlink()
    assert (files.root / "etc/real.toml").read_bytes() == b"new"


def test_a_link_that_is_turned_to_an_old_file_is_a_change(files: HostFiles) -> None:
    (files.root / "old.toml").write_text("version = 2\n")
    before = files.changed_at("/old.toml")
    assert before is not None
    while time.time() <= before + 0.05:  # the clock of files moves by ticks
        time.sleep(0.01)
    (files.root / "config.toml").symlink_to("old.toml")
    changed_at = files.changed_at("/config.toml")
    assert changed_at is not None
    assert changed_at > before
    assert files.changed_at("/old.toml") == before


def test_a_concurrent_writer_is_noticed_and_nothing_of_its_is_lost(files: HostFiles) -> None:
    path = files.root / "etc/config.toml"
    path.write_bytes(b"theirs")
    with pytest.raises(ConcurrentWriteError):
        files.write_atomic("/etc/config.toml", b"ours", expected=b"what we read")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(files.root / "etc") == ["config.toml"]


def test_a_bind_mounted_file_is_written_in_place(files: HostFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.root / "etc/config.toml"
    path.write_bytes(b"a longer old text")
    inode = path.stat().st_ino

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("flox_node.host.files.os.rename", busy)
    files.write_atomic("/etc/config.toml", b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino == inode
    assert os.listdir(files.root / "etc") == ["config.toml"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    files: HostFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.root / "etc/config.toml"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flox_node.host.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic("/etc/config.toml", b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(files.root / "etc") == ["config.toml"]


def test_what_a_killed_write_left_is_discarded(files: HostFiles) -> None:
    leftover = files.root / "etc/.config.toml.flox-node.tmp"
    leftover.write_bytes(b"half")
    files.discard_leftover("/etc/config.toml")
    assert not leftover.exists()


def test_a_read_only_tree_is_removed_whole_and_removing_it_again_is_no_error(files: HostFiles) -> None:
    folder = files.root / "nix/store/abc/bin"
    folder.mkdir(parents=True)
    (folder / "tool").write_bytes(b"x")
    for path in (folder, folder.parent):
        path.chmod(0o555)
    assert files.remove_tree("/nix")
    assert not (files.root / "nix").exists()
    assert not files.remove_tree("/nix")


def test_removing_a_tree_through_a_symlink_removes_the_symlink_only(files: HostFiles) -> None:
    (files.root / "data").mkdir()
    (files.root / "data/kept").write_bytes(b"x")
    (files.root / "nix").symlink_to("/data")
    assert files.remove_tree("/nix")
    assert (files.root / "data/kept").exists()
