"""A kind node's image as daemonset/kind/node.Dockerfile makes it, over a base that is made here."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.bed import cache, image, kind, platforms, project, releases, rootfs
from tests.bed.buildah import BUILD, Buildah

RELEASE = "2.1"  # of containerd in it
_DOCKERFILE = "daemonset/kind/node.Dockerfile"
_BASE, _MADE = "localhost/kind-node", "localhost/flox-kind-node"


def roots() -> tuple[Path, Path]:
    """The root file systems of the image and of its base, built if need be."""
    key = {
        "image": image.archive().parent.name,
        "base": kind.node_layer().name,
        "sources": project.digests(_DOCKERFILE, "tests/bed/kind_image.py"),
    }
    folder = cache.newest("kind-image", key, _build, 1)
    return folder / "made", folder / "base"


def _build(folder: Path) -> None:
    base = folder / "base"
    outfit = platforms.OUTFITS["kind"](RELEASE, "alone")
    base.mkdir()
    for layer in (rootfs.folder(), releases.layer(RELEASE), kind.node_layer()):
        subprocess.run(["cp", "-a", f"{layer}/.", base], check=True)
    for name in releases.PROGRAMS:  # as kind has them
        (base / "usr/bin" / name).rename(base / "usr/local/bin" / name)
    for path, text in outfit.files.items():
        if not path.endswith("/"):
            (base / path.lstrip("/")).write_text(text)
    with tempfile.TemporaryDirectory(dir=cache.folder(), prefix="kind-image-") as scratch:
        buildah = Buildah(Path(scratch))
        buildah.commit(_BASE, base, "--entrypoint", '["/usr/local/bin/entrypoint", "/sbin/init"]')
        product = buildah("pull", "--quiet", f"oci-archive:{image.archive()}")
        empty = Path(scratch) / "context"
        empty.mkdir()
        arguments = (f"--build-arg=BASE={_BASE}", f"--build-arg=PRODUCT={product}")
        buildah(*BUILD, *arguments, "--tag", _MADE, "--file", project.ROOT / _DOCKERFILE, empty)
        buildah.export(_MADE, folder / "made")
