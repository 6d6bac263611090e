"""A store on a disk of its own that runs full: what `flox-node gc` does about it, on a real ext4.

In Nix' place is a double of `nix-store --gc --max-freed N`: it keeps what the links below gcroots lead to with all that
it refers to, removes other paths until more than N bytes are gone, and says so in Nix' words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flox_node.environments import gc
from flox_node.environments.paths import Paths
from flox_node.host.files import HostFiles
from flox_node.plan import room
from tests.conftest import FULL

DISK = (20 << 30) if FULL else (1 << 30)  # bytes; sparse, and what fills it is allocated and never written
ENVIRONMENTS = 300 if FULL else 8
GENERATIONS = 3
SHARED = 285 if FULL else 20  # store paths that all environments have
OWN_FILES = 50
FULLNESS = 0.93
_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    """A node whose /nix is a disk of its own."""
    image, nix = tmp_path / "image", tmp_path / "node/nix"
    with image.open("wb") as file:
        file.truncate(DISK)
    nix.mkdir(parents=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(nix)], check=True)
    paths = Paths(str(tmp_path / "node"))
    manifest = SimpleNamespace(entry_points={"nix-store": "nix-store"})
    for folder in (paths.gc_roots, paths.index, paths.on_disk("/nix/store")):
        os.makedirs(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "parse", lambda _: manifest)
        yield paths
    subprocess.run(["umount", str(nix)], check=True)


def test_a_full_disk_is_collected_down_to_the_watermark_and_no_further(paths: Paths) -> None:
    size = _fill(paths)
    assert _free(paths) < 0.1
    held = _key(0, 0)  # the oldest of all, and a pod has it
    os.symlink(f"/nix/store/{held}-environment", f"{paths.gc_roots}/pod-web")

    gone, freed = room.make_room(_host(paths), paths, fresh_s=600)

    assert 0.195 < _free(paths) < 0.2 + 3 * size / DISK
    assert freed.bytes > 0
    assert freed.paths == ENVIRONMENTS * GENERATIONS - len(gc.entries(paths))
    left = set(os.listdir(paths.on_disk("/nix/store")))
    assert {f"{_key(number, GENERATIONS - 1)}-environment" for number in range(ENVIRONMENTS)} <= left
    assert f"{held}-environment" in left
    order = [key for key in (_key(*which) for which in _order()) if key != held]
    missing = [key for key in order if f"{key}-environment" not in left]
    assert missing == order[: len(missing)], "what an environment was before, in the order of its last use"
    assert set(gone) == {f"demo/e{number}" for number, generation in _order() if _key(number, generation) in missing}
    roots = {name for name in os.listdir(paths.gc_roots) if name.startswith("env-")}
    assert roots == {f"env-{entry.key}" for entry in gc.entries(paths)}
    assert room.make_room(_host(paths), paths, fresh_s=600)[0] == [], "there is room now"


def _host(paths: Paths) -> Any:
    def run(words: Sequence[str], **_: Any) -> SimpleNamespace:
        program, gc_, option, most = words
        assert (program, gc_, option) == ("nix-store", "--gc", "--max-freed")
        return SimpleNamespace(returncode=0, stdout=_nix_gc(int(most), paths).encode(), stderr=b"")

    files = SimpleNamespace(real=HostFiles(paths.root).real, read=lambda _: b"")
    return SimpleNamespace(files=files, processes=SimpleNamespace(run=run))


def _nix_gc(most: int, paths: Paths) -> str:
    live = {os.path.basename(os.readlink(link.path)) for link in os.scandir(paths.gc_roots) if link.is_symlink()}
    for name in list(live):
        listed = Path(paths.on_disk(f"/nix/store/{name}"), "requisites.txt").read_text()
        live |= {os.path.basename(path) for path in listed.split()}
    deleted, freed = 0, 0.0
    for entry in list(os.scandir(paths.on_disk("/nix/store"))):
        if entry.name not in live and freed <= most:
            freed += room.weigh(f"/nix/store/{entry.name}", paths).bytes
            shutil.rmtree(entry.path)
            deleted += 1
    return f"{deleted} store paths deleted, {freed / (1 << 20):.2f} MiB freed\n"


def _free(paths: Paths) -> float:
    status = os.statvfs(paths.on_disk("/nix/store"))
    return status.f_bavail / status.f_blocks


def _fill(paths: Paths) -> int:
    """Environments that share most of their closures, as realisations leave them; the bytes that each has alone."""
    status = os.statvfs(paths.on_disk("/nix/store"))
    size = int((status.f_bavail - (1 - FULLNESS) * status.f_blocks) * status.f_frsize / (ENVIRONMENTS * GENERATIONS))
    shared = [f"/nix/store/{_digest(1_000_000 + number)}-package" for number in range(SHARED)]
    for path in shared:
        os.mkdir(paths.on_disk(path))
    for age, (environment, generation) in enumerate(reversed(_order())):
        key = _key(environment, generation)
        path = f"/nix/store/{key}-environment"
        os.mkdir(paths.on_disk(path))
        _furnish(Path(paths.on_disk(path)), shared, size)
        os.symlink(path, f"{paths.gc_roots}/env-{key}")
        entry = Path(paths.index, f"{key}.json")
        entry.write_text(json.dumps({"environment": f"demo/e{environment}", "mode": "run", "store_path": path}))
        os.utime(entry, (entry.stat().st_mtime - 3600 - age,) * 2)
    return size


def _order() -> list[tuple[int, int]]:
    """Environment and generation, what was used longest ago first."""
    return [(number, generation) for generation in range(GENERATIONS) for number in range(ENVIRONMENTS)]


def _furnish(folder: Path, shared: list[str], size: int) -> None:
    (folder / "requisites.txt").write_text("\n".join(shared))
    for number in range(OWN_FILES):
        (folder / str(number)).touch()
    with (folder / "large").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size - (64 << 10)))


def _key(environment: int, generation: int) -> str:
    return _digest(1 + environment * 10 + generation)


def _digest(number: int) -> str:
    digits = ""
    for _ in range(32):
        number, rest = divmod(number, 32)
        digits = _ALPHABET[rest] + digits
    return digits
