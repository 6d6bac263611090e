"""The product's image as its Dockerfile makes it, by buildah, over base images that are made here.

It follows the sources, as the payload does. buildah keeps its layers in the bed's cache, so that a change of the Python
sources does not fetch wheels or compile the shim again.
"""

import ast
import configparser
import functools
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from flox_node import __version__
from tests.bed import cache, debian, golang, images, payload, project, store
from tests.bed.buildah import BUILD, Buildah

REFERENCE = f"docker.io/library/flox-node:{__version__}"  # what the manifest names
NEXT_REFERENCE = f"{REFERENCE}-next"
SECRET = "nothing-of-the-builds-secrets-may-be-in-the-image"  # stands in the secrets of every build

_SOURCES = (".dockerignore", "daemonset/Dockerfile", "daemonset/requirements")
_SUITE = "trixie"  # has the minor version of Python that the bed's store has, so that one set of wheels serves both
_PACKAGES = ("dash", "python3", "python3-pip")
_REVISION = 1  # of the base images
_KEPT = 2  # images in the cache, some 250 MB each
_MOST_LAYERS = 6 << 30  # bytes of buildah's layers, after which they are made anew; a changed source adds 250 MB
# Of pip's settings those that say how the index is reached from here; files that they name are not in the build.
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "cert")


@functools.cache  # one run of tests is about one state of the tree
def archive() -> Path:
    """The OCI archive of this tree's image, built if need be; `ctr images import` names it `REFERENCE`."""
    key = {
        "sources": project.package() | project.digests(*_SOURCES),
        "made_of": [payload.flox_store().root.name, golang.version(), _SUITE, _PACKAGES],
        "code": project.digests("tests/bed/image.py"),
    }
    return cache.newest("image", key, _build, _KEPT) / "flox-node.tar"


@functools.cache
def next_archive() -> Path:
    """The same image with a payload of another version and id: what an upgrade goes to. Named `NEXT_REFERENCE`."""
    upgraded = archive().with_name("next.tar")
    with cache.locked("image-next"):
        if not upgraded.exists():
            manifest = payload.resealed(images.read_file(archive(), "payload/manifest.json"))
            partial = upgraded.with_suffix(".partial")
            top = images.layer({"payload/manifest.json": (manifest, 0o444)})
            images.write_on_top(archive(), partial, NEXT_REFERENCE, top)
            partial.rename(upgraded)
    return upgraded


def _build(target: Path) -> None:
    try:
        _build_with_layers(target)
    except RuntimeError as error:
        # A build that was killed may leave layers that buildah knows and the disk does not. A second failure counts.
        cache.say(f"image: building without the layers of former builds, because: {str(error)[-300:]}")
        shutil.rmtree(_buildah().layers, ignore_errors=True)
        _build_with_layers(target)


def _build_with_layers(target: Path) -> None:
    buildah = _buildah()
    buildah("rm", "--all")  # what a killed build left; no other one runs, since artefacts are built under a lock
    paths = payload.flox_store().paths
    arguments = {
        "PYTHON_IMAGE": _base("python", [_SUITE, _PACKAGES], {"PATH": images.PATH.removeprefix("PATH=")}, _fill_python),
        "GO_IMAGE": _base("go", golang.version(), {}, _fill_go),
        "NIX_IMAGE": _base("nix", payload.flox_store().root.name, store.NIX_ENVIRONMENT, _fill_nix),
        "VERSION": __version__,
        **{f"STORE_{name}": paths[key] for name, key in _STORE_ARGUMENTS.items()},
    }
    with tempfile.TemporaryDirectory() as secrets:
        _write_secrets(Path(secrets))
        buildah(
            *(*BUILD, "--platform=linux/amd64", "--timestamp=0"),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            *(f"--secret=id={file.name},src={file}" for file in sorted(Path(secrets).iterdir())),
            *("--tag", REFERENCE, "--file", project.ROOT / "daemonset/Dockerfile", project.ROOT),
        )
    fast = ("--compression-format=zstd", "--compression-level=1")
    buildah("push", *fast, REFERENCE, f"oci-archive:{target}/flox-node.tar:{REFERENCE}")
    buildah("rmi", REFERENCE)  # its layers follow the sources and would not be used again
    _prune()


_STORE_ARGUMENTS = {"BUSYBOX": "busybox", "FLOX": "flox", "GIT": "git", "NIX": "nix", "PYTHON": "python3"}


def _base(name: str, recipe: object, environment: Mapping[str, str], fill: Callable[[Path], None]) -> str:
    """The reference of a base image, made if need be of the folder that `fill` fills."""
    digest = hashlib.sha256(json.dumps([_REVISION, recipe, environment]).encode()).hexdigest()
    reference = f"localhost/flox-node-{name}:{digest[:12]}"
    buildah = _buildah()
    if buildah("images", "--quiet", "--filter", f"reference={reference}"):
        return reference
    with cache.progress(f"base image {name}"), tempfile.TemporaryDirectory(dir=cache.folder()) as folder:
        fill(Path(folder))
        buildah.commit(reference, Path(folder), *(f"--env={key}={value}" for key, value in environment.items()))
    return reference


def _fill_python(root: Path) -> None:
    debian.unpack(_SUITE, _PACKAGES, root)
    # What the packages' scripts would do.
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("dash")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(b"".join(file.read_bytes() for file in certificates))


def _fill_go(root: Path) -> None:
    # Only what compiles a program: the rest is half of the files.
    rest = shutil.ignore_patterns("api", "cmd", "doc", "misc", "test", "testdata", "*_test.go")
    shutil.copytree(Path(golang.go()).resolve().parents[1], root / "usr/local/go", symlinks=True, ignore=rest)


def _fill_nix(root: Path) -> None:
    origin = payload.flox_store()
    subprocess.run(["cp", "-a", origin.root / "nix", root / "nix"], check=True)
    (root / "bin").mkdir()
    (root / "bin/sh").symlink_to(f"{origin.paths['busybox']}/bin/sh")
    (root / "bin/nix-store").symlink_to(origin.nix_store)


def pip_settings() -> dict[str, str]:
    """This machine's own settings of pip, by name ("index-url")."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in listed.stdout.splitlines())  # global.cert='/etc/ssl/...'
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in pairs}


def _write_secrets(folder: Path) -> None:
    """What the build's pip needs of this machine's settings."""
    settings = pip_settings()
    certificates = Path(settings.get("cert", "/etc/ssl/certs/ca-certificates.crt"))
    (folder / "ca.crt").write_bytes(f"# {SECRET}\n".encode() + certificates.read_bytes())
    parser = configparser.RawConfigParser()
    parser["global"] = {name: settings[name] for name in _PIP_SETTINGS if name in settings}
    parser["global"]["cert"] = "/run/secrets/ca.crt"
    text = io.StringIO()
    parser.write(text)
    (folder / "pip.conf").write_text(f"# {SECRET}\n{text.getvalue()}")


def _prune() -> None:
    """Remove all layers but those of the base images, once there are too many of them."""
    size = ["du", "-s", "--block-size=1", str(_buildah().layers)]
    used = subprocess.run(size, capture_output=True, text=True, check=True).stdout
    if int(used.split()[0]) > _MOST_LAYERS:
        _buildah()("rmi", "--prune")


def _buildah() -> Buildah:
    return Buildah(cache.folder() / "buildah")
