"""Prepare everything that the tests run against."""

import os
import shutil

from tests.bed import cache, debian, images, releases, rootfs, scope


def prepare(*extra_releases: str) -> None:
    """Make this machine and the cache ready: Debian packages, containerd 1.6, 1.7 and 2.1, runc, the node root, images.

    extra_releases: containerd releases that are only built when asked for, e.g. "2.3".
    """
    if os.geteuid() != 0:
        raise PermissionError("The bed needs root: it mounts file systems and makes namespaces.")
    debian.install_machine_packages()
    for release in ("1.6", *releases.DEFAULT, *extra_releases):
        releases.layer(release)
    releases.runc()
    releases.runc_1_3()
    rootfs.folder()
    images.standard()


def clean() -> None:
    """Remove the whole cache, which nothing may be using."""
    scope.sweep()
    running = [path.stem for path in (cache.folder() / "running").glob("*.lock")]
    if running:
        raise RuntimeError(f"Still in use: {', '.join(running)}.")
    shutil.rmtree(cache.folder(), ignore_errors=True)
