"""The containerd releases and the runc that the tests run against, unpacked beside each other.

A release is a *layer*: a folder with `usr/bin/{containerd,containerd-shim-runc-v2,ctr}` to lay over a node's root.
"""

import functools
import shutil
from pathlib import Path

from tests.bed import cache, debian, golang

PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")
DEBIAN_SUITES = {"1.6": "bookworm", "1.7": "trixie"}
BUILT = ("2.1", "2.3", "2.4")  # each pinned by tests/tools/containerd-<release>/go.mod
DEFAULT = ("1.7", "2.1")  # what every test of a node runs against
NEWER = ("2.3", "2.4")  # take minutes to build: only where a test asks for them


def layer(release: str) -> Path:
    """The layer of a containerd release ("1.6", "1.7", "2.1", "2.3", "2.4"), prepared if need be."""
    if release in DEBIAN_SUITES:
        suite = DEBIAN_SUITES[release]
        recipe: dict[str, object] = {"suite": suite, "revision": 1}
        return cache.artefact(f"containerd-{release}", recipe, functools.partial(_unpack_containerd, suite))
    if release in BUILT:
        module = golang.TOOLS / f"containerd-{release}"
        recipe = {"module": golang.sources(module), "revision": 1}
        return cache.artefact(f"containerd-{release}", recipe, functools.partial(_build_containerd, module))
    raise ValueError(f"containerd {release!r} is none of {(*DEBIAN_SUITES, *BUILT)}")


def program(release: str, name: str) -> Path:
    """One program of a release, e.g. `program("2.1", "ctr")`; it runs on this machine too."""
    return layer(release) / "usr/bin" / name


def runc() -> Path:
    """runc 1.1 of bookworm, which runs on this machine too."""
    return cache.artefact("runc-1.1", {"suite": "bookworm", "revision": 1}, _unpack_runc) / "usr/sbin/runc"


def runc_1_3() -> Path:
    """runc 1.3, which takes a minute to build; the first with ID-mapped mounts is 1.2."""
    module = golang.TOOLS / "runc-1.3"
    recipe: dict[str, object] = {"module": golang.sources(module), "revision": 1}
    return cache.artefact("runc-1.3", recipe, functools.partial(_build_runc, module)) / "runc"


def crun() -> Path:
    """A folder with crun 1.21 of trixie and its libraries, which runs where it is put as CRUN."""
    return cache.artefact("crun-1.21", {"suite": "trixie", "revision": 1}, _unpack_crun) / "crun"


CRUN = "/opt/crun"


def _build_runc(module: Path, folder: Path) -> None:
    golang.build(module, "tool", into=folder, cgo=True)


def _unpack_crun(folder: Path) -> None:
    from tests.bed.store import relocate  # which a release needs for nothing else

    package = folder / "package"
    debian.unpack("trixie", ["crun"], package)
    (folder / "crun").mkdir()
    for library in (package / "usr/lib/x86_64-linux-gnu").glob("*.so*"):
        shutil.copy(library, folder / "crun" / library.name)
    shutil.copy(package / "usr/bin/crun", folder / "crun/crun")
    relocate(folder / "crun/crun", [CRUN], f"{CRUN}/ld-linux-x86-64.so.2")
    shutil.rmtree(package)


def _unpack_containerd(suite: str, folder: Path) -> None:
    package = folder / "package"
    debian.unpack(suite, ["containerd"], package, closure=False)
    _keep(package, folder, [f"usr/bin/{name}" for name in PROGRAMS])


def _unpack_runc(folder: Path) -> None:
    package = folder / "package"
    debian.unpack("bookworm", ["runc"], package, closure=False)
    _keep(package, folder, ["usr/sbin/runc"])


def _build_containerd(module: Path, folder: Path) -> None:
    (folder / "usr/bin").mkdir(parents=True)
    golang.build(module, "tool", into=folder / "usr/bin")


def _keep(package: Path, folder: Path, files: list[str]) -> None:
    """Move `files` out of an unpacked package and drop the rest of it."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).rename(folder / file)
    shutil.rmtree(package)
