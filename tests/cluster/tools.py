"""The tools of the pipeline of docs/examples/pipeline as packages: Go, kubectl, helm and buildah, in a binary cache.

The second one beside `tests.bed.store.binary_cache`, because they are large and only the long runs need them.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bed import cache, debian, golang, store
from tests.cluster import binaries

KEY_NAME = "flox-node-tools-1"
HELM = golang.TOOLS / "helm"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Tools:
    """The binary cache as a folder, the key that it is signed with, and the store paths by name ("go")."""

    cache_dir: Path
    public_key: str
    paths: dict[str, str]


def tools() -> Tools:
    """The cache, built if need be: some minutes the first time, most of them for helm."""
    recipe = {
        "store": store.base().root.name,
        "go": golang.version(),
        "kubectl": binaries.path(binaries.release(), "kubectl").parents[2].name,
        "helm": golang.sources(HELM),
        "revision": 1,
    }
    folder = cache.artefact("tools", recipe, _build)
    known = json.loads((folder / "tools.json").read_text())
    return Tools(folder / "cache", known["public_key"], known["paths"])


def _build(folder: Path) -> None:
    builder = store.extended(folder / "root", store.base())
    libc = builder.paths["glibc"]
    packages = folder / "debian"
    debian.unpack("trixie", ["buildah", "netavark"], packages)

    def go(out: Path, path: str) -> None:
        rest = shutil.ignore_patterns("api", "cmd", "doc", "misc", "test", "testdata", "*_test.go")
        shutil.copytree(Path(golang.go()).resolve().parents[1], out / "share/go", symlinks=True, ignore=rest)
        (out / "bin").mkdir()
        (out / "bin/go").symlink_to("../share/go/bin/go")

    def kubectl(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        shutil.copy(binaries.path(binaries.release(), "kubectl"), out / "bin/kubectl")

    def helm(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        golang.build(HELM, "helm.sh/helm/v3/cmd/helm", into=out / "bin")

    def buildah(out: Path, path: str) -> None:
        search = (f"{path}/lib", f"{libc}/lib")
        program, network = packages / "usr/bin/buildah", packages / "usr/lib/podman/netavark"
        (out / "lib").mkdir()
        for library in _libraries(packages, program, network):
            if not (folder / "root" / libc.lstrip("/") / "lib" / library.name).exists():
                shutil.copy(library, out / "lib")
                store.relocate(out / "lib" / library.name, search, None)
        (out / "libexec").mkdir()
        for each in (program, network):  # buildah does not start without netavark, whatever it is to build
            shutil.copy(each, out / "libexec")
            store.relocate(out / "libexec" / each.name, search, f"{libc}/lib/{_LOADER}")
        start = [
            f"#!{builder.paths['busybox']}/bin/sh",
            f"export CONTAINERS_HELPER_BINARY_DIR={path}/libexec",
            f'exec {path}/libexec/buildah "$@"',
        ]
        store.write_program(out / "bin/buildah", start)

    origin = [libc, golang.version(), binaries.release(), golang.sources(HELM)]
    built = {
        add.__name__: builder.add(add.__name__, f"{add.__name__}-1", origin, add)
        for add in (go, kubectl, helm, buildah)
    }
    shutil.rmtree(packages)
    made = builder.finish()
    nix = f"{made.paths['nix']}/bin/nix"
    secret = made.run(nix, "key", "generate-secret", "--key-name", KEY_NAME)
    public = made.run(nix, "key", "convert-secret-to-public", input=secret).decode().strip()
    (made.root / "secret").write_bytes(secret)
    made.run(nix, "copy", "--to", "file:///cache?secret-key=/secret&compression=zstd", *built.values())
    (made.root / "cache").rename(folder / "cache")
    shutil.rmtree(made.root)
    (folder / "tools.json").write_text(json.dumps({"public_key": public, "paths": built}))


def _libraries(packages: Path, *programs: Path) -> set[Path]:
    """What unpacked programs need besides the C library, as their own loader finds it."""
    folder = packages / _LIBRARIES
    listed = ""
    for program in programs:
        command: list[str | Path] = [folder / _LOADER, "--library-path", folder, "--list", program]
        listed += subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {Path(word) for word in listed.split() if word.startswith(f"{folder}/")}
