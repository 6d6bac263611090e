"""What environments leave on a disk: nothing after they went, and a clear word where there is no room."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flox_node.environments import fetch, gc, grants, notices
from flox_node.environments.paths import Paths
from flox_node.host.files import HostFiles
from flox_node.plan import room
from tests.conftest import FULL
from tests.containerd.environments.store_node import StoreNode, answer
from tests.containerd.environments.test_realise import cached, failure, resolution, wait_for
from tests.doubles.hub import HubData, catalog_package, lockfile, serve, store_path_package

AT_ONCE = 20 if FULL else 2
CYCLES = 10_000 if FULL else 6
DISK = 2 << 30


@pytest.mark.timeout(600 + CYCLES * 10)
def test_environments_that_come_and_go_leave_nothing(node: StoreNode, data: HubData) -> None:
    node.real("/nix/var/nix/gcroots/hello").symlink_to(node.hello)
    names = [f"e{number}" for number in range(AT_ONCE)]
    for name in names:
        packages = [store_path_package("hello", node.hello)]
        data.publish("demo", name, lockfile(packages, variables={"NAME": f"{name} of {uuid.uuid4()}"}))
    before: Counter[str] | None = None
    for _ in range(CYCLES // AT_ONCE + 1):
        for some in (names[start : start + 2] for start in range(0, AT_ONCE, 2)):
            for process in [node.start(f"demo/{name}") for name in some]:
                resolution(answer(process))
        if before is None:
            # Nix keeps what any program of this machine names, also those on the nodes of other tests: they have this.
            for path in node.real("/nix/store").glob("*-flox-interpreter*"):
                node.real(f"/nix/var/nix/gcroots/{path.name}").symlink_to(f"/nix/store/{path.name}")
        _remove_all(node)
        before = before or _left(node)  # the first cycle made the folders
        assert not _left(node) - before


def _remove_all(node: StoreNode) -> None:
    """As the collections of all days to come."""
    paths = Paths(str(node.root))
    wait_for(lambda: not node.processes())
    gc.let_go([entry.key for entry in gc.entries(paths)], paths, unused_since=time.time() + 60)
    os.makedirs(paths.notices, exist_ok=True)  # on a busy machine pods are told how far their fetches are
    for folder in (paths.grants, paths.fetches, paths.notices):
        for file in Path(folder).iterdir():
            os.utime(file, (0, 0))
    notices.sweep(paths)
    grants.sweep(paths)
    fetch.sweep(paths)
    gc.forget_strays(paths)
    node.run(node.nix_store, "--gc", "--quiet")


def _left(node: StoreNode) -> Counter[str]:
    """Files, folders and links by folder, and the bytes of those that are not databases or logs."""
    found: Counter[str] = Counter()
    for folder, folders, files in os.walk(node.root):
        where = folder.removeprefix(str(node.root))
        if where.startswith("/tmp/compiled"):
            continue
        found[f"names in {where}"] = len(folders) + len(files)
        if not where.startswith(("/nix/store", "/nix/var/nix/db", "/var/log")):
            found[f"bytes in {where}"] = sum(os.lstat(f"{folder}/{name}").st_size for name in files)
    found["store"] = len(os.listdir(node.real("/nix/store")))
    return found


@pytest.fixture
def small(node: StoreNode, tmp_path: Path) -> Iterator[StoreNode]:
    """The node on a small disk."""
    image, root = tmp_path / "image", tmp_path / "root"
    with image.open("wb") as file:
        file.truncate(DISK)
    root.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(root)], check=True)
    small = replace(node, root=root)
    try:
        subprocess.run(["cp", "-a", f"{node.root}/.", str(root)], check=True)
        yield small
    finally:
        small.stop()
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.mark.skipif(not FULL, reason="only in `make test-full`: fills a disk of 2 GiB")
def test_a_full_disk_is_told_and_the_next_collection_helps(small: StoreNode, data: HubData, tmp_path: Path) -> None:
    node, paths = small, Paths(str(small.root))
    node.real("/nix/var/nix/gcroots/hello").symlink_to(node.hello)
    with serve(data, cache=node.real("/tmp/cache")) as hub:
        rules = {"free_mib": 0}
        node.policy(hub.git_url, nix={"substituters": [hub.cache_url]}, realise=rules)
        for name in ("old", "new"):
            path = cached(node, name, 300 << 20)
            data.publish("demo", name, lockfile([catalog_package(name, {"out": path})]))
        old = resolution(node.realise("demo/old"))
        for entry in gc.entries(paths):
            os.utime(entry.file, (time.time() - 7200,) * 2)
        filler = node.real("/nix/var/filler")
        _fill(filler, leave=100 << 20)
        assert "300.0 MiB are needed" in failure(node.realise("demo/new"), "disk-full")
        _fill(filler, leave=16 << 10)
        data.publish(
            "demo", "tiny", lockfile([store_path_package("hello", node.hello)], variables={"A": "x" * 200_000})
        )
        assert "disk" in failure(node.realise("demo/tiny"), "disk-full")
        assert not node.pulls()
        assert {entry.environment for entry in gc.entries(paths)} == {"demo/old"}, "no half environment"

        gone, freed = room.make_room(_host(node), paths, fresh_s=600)

        assert gone == ["demo/old"]
        assert freed.bytes > 300 << 20
        assert not node.real(old["store_path"]).exists()
        resolution(node.realise("demo/tiny"))
        filler.unlink()
        resolution(node.realise("demo/new"))
        node.run(node.nix_store, "--verify", "--check-contents")


def _fill(filler: Path, *, leave: int) -> None:
    filler.unlink(missing_ok=True)
    disk = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave)


def _host(node: StoreNode) -> Any:
    def run(words: Sequence[str], **_: Any) -> SimpleNamespace:
        assert words[1] == "--gc"
        done = node.run(node.nix_store, *words[1:])
        return SimpleNamespace(returncode=0, stdout=done.encode(), stderr=b"")

    files = SimpleNamespace(real=HostFiles(str(node.root)).real, read=lambda _: b"")
    return SimpleNamespace(files=files, processes=SimpleNamespace(run=run))


@pytest.fixture(autouse=True)
def _no_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "parse", lambda _: SimpleNamespace(entry_points={"nix-store": "nix-store"}))
