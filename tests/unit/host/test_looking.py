"""Looking at a node: its mounts, its labels, what its folders allow."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from flox_node.errors import OutsideError
from flox_node.host import Host, HostFiles, Processes, mounts, selinux
from flox_node.host.children import Completed
from flox_node.host.probes import space, try_folder

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 254:16 /data/nix /nix rw,relatime shared:2 master:1 - ext4 /dev/vdb rw
24 22 0:44 / /mnt/with\\040space ro,noexec - tmpfs none rw
"""


def test_mounts_are_read_with_their_escapes_and_options() -> None:
    found = mounts.parse(MOUNTINFO + "torn line\n")
    assert [mount.target for mount in found] == ["/", "/nix", "/mnt/with space"]
    assert found[1].root == "/data/nix"
    assert "noexec" in found[2].options


def test_the_mount_that_holds_a_path_is_the_innermost() -> None:
    found = mounts.parse(MOUNTINFO)
    assert [mounts.covering(found, path).target for path in ("/nix/store", "/nix", "/nixon", "/")] == [  # type: ignore[union-attr]
        "/nix", "/nix", "/", "/"
    ]  # fmt: skip


def _process(root: Path, pid: int, namespace: str, mountinfo: str) -> None:
    folder = root / f"proc/{pid}/ns"
    folder.mkdir(parents=True)
    (folder / "mnt").symlink_to(namespace)
    (folder.parent / "mountinfo").write_text(mountinfo)


def test_only_what_lies_below_a_folder_and_is_mounted_in_another_namespace_counts(tmp_path: Path) -> None:
    _process(tmp_path, 1, "mnt:[1]", MOUNTINFO)
    _process(tmp_path, 7, "mnt:[1]", MOUNTINFO + "9 1 254:16 /data/nix/var/own /x rw - ext4 /dev/vdb rw\n")
    _process(tmp_path, 8, "mnt:[2]", MOUNTINFO)  # a pod with a hostPath of /
    _process(tmp_path, 9, "mnt:[3]", "9 1 254:16 /data/nix/var/flox-node/views/k /nix ro - ext4 /dev/vdb rw\n")
    _process(tmp_path, 10, "mnt:[4]", "9 1 254:0 /data/nix/other /nix ro - ext4 /dev/vda rw\n")
    assert mounts.shown_elsewhere(HostFiles(tmp_path), "/nix") == ("/nix/var/flox-node/views/k",)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/nix", "usr_t"),
        ("/nix/var/nix/db/db.sqlite", "usr_t"),
        ("/opt/flox-node", "usr_t"),
        ("/opt/flox-node/payloads/abc/bin/flox-runtime", "bin_t"),
        ("/opt/flox-node/payloads/abc/manifest.json", "usr_t"),
        ("/opt/flox-node/bin/flox-runtime", "bin_t"),
        ("/etc/systemd/system/nix.mount", "systemd_unit_file_t"),
        ("/etc/containerd/config.toml", None),
        ("/etc/passwd", None),
        ("/nixon", None),
    ],
)
def test_each_of_our_paths_has_its_type_and_nobody_elses_has_one(path: str, kind: str | None) -> None:
    assert selinux.type_of(path) == kind


def test_labels_are_set_where_selinux_is_on_and_only_on_what_is_new(tmp_path: Path) -> None:
    files = HostFiles(tmp_path)
    (tmp_path / "etc/flox-node").mkdir(parents=True)
    files.mkdir("/nix")
    assert selinux.mode(tmp_path) is selinux.Mode.ABSENT
    assert selinux.type_at(tmp_path / "nix") is None
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    assert selinux.mode(tmp_path) is selinux.Mode.ENFORCING
    files.mkdir("/nix/store")
    files.write_atomic("/etc/flox-node/policy.json", b"{}")
    files.write_atomic("/etc/other", b"")
    assert selinux.type_at(tmp_path / "nix/store") == "usr_t"
    assert selinux.type_at(tmp_path / "etc/flox-node/policy.json") == "etc_t"
    assert selinux.type_at(tmp_path / "etc/other") is None
    os.setxattr(tmp_path / "etc/flox-node/policy.json", selinux.ATTRIBUTE, b"system_u:object_r:theirs_t:s0\0")
    files.write_atomic("/etc/flox-node/policy.json", b"{1}")
    assert selinux.type_at(tmp_path / "etc/flox-node/policy.json") == "theirs_t"


def test_a_tree_of_ours_is_labelled_where_it_is_not_yet_and_what_is_nobodys_is_left(tmp_path: Path) -> None:
    (tmp_path / "nix/store/a-b").mkdir(parents=True)
    (tmp_path / "nix/store/a-b/file").touch()
    (tmp_path / "nix/store/a-b/link").symlink_to("/etc/passwd")
    assert selinux.label_tree(tmp_path, "/nix/store/a-b") == 0, "no SELinux"
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    assert selinux.label_tree(tmp_path, "/nix/store/a-b") == 3
    assert selinux.label_tree(tmp_path, "/nix/store/a-b") == 0
    os.setxattr(tmp_path / "nix/store/a-b/file", selinux.ATTRIBUTE, b"system_u:object_r:default_t:s0\0")
    assert selinux.label_tree(tmp_path, "/nix/store/a-b") == 1
    assert selinux.type_at(tmp_path / "nix/store/a-b/file") == "usr_t"
    assert selinux.type_at(tmp_path / "nix/store") is None
    assert selinux.label_tree(tmp_path, "/nix/store/gone") == 0


def test_a_folder_is_tried_by_a_real_write_and_nothing_of_it_stays(tmp_path: Path) -> None:
    host = Host.at(tmp_path)
    (tmp_path / "opt").mkdir()
    assert try_folder(host, "/opt/not/there").not_writable == ""
    assert os.listdir(tmp_path / "opt") == []
    assert space(host, "/opt/not/there").free_bytes > 0


def test_the_start_of_a_process_is_told_so_exactly_that_what_was_written_before_it_is_before(tmp_path: Path) -> None:
    for _ in range(20):
        file = tmp_path / "read-at-the-start"
        file.write_text("x")
        with subprocess.Popen(["sleep", "100"]) as process:
            started = Processes("/").started_at(process.pid)
            process.kill()
        assert started is not None
        assert file.stat().st_ctime <= started <= time.time() + 0.02
    assert Processes("/").started_at(2**22 + 1) is None


def test_the_tick_of_a_start_is_the_same_whatever_is_done_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Processes("/")
    tick, started = node.started_at_tick(os.getpid()), node.started_at(os.getpid())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1000.0)
    assert node.started_at_tick(os.getpid()) == tick
    assert node.started_at(os.getpid()) != started
    assert node.started_at_tick(2**22 + 1) is None


def test_a_folder_whose_programs_may_not_be_started_is_told_so(tmp_path: Path) -> None:
    class Refusing(Processes):
        def run(self, *_: object, **__: object) -> Completed:
            try:
                raise PermissionError(13, "Permission denied")
            except PermissionError as error:
                raise OutsideError("/opt/x cannot be started (Permission denied).") from error

    host = Host(HostFiles(tmp_path), Refusing(tmp_path), None)  # type: ignore[arg-type]
    assert try_folder(host, "/", execute=True).not_executable == "Permission denied"
