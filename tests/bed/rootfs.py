"""The root file system of a node: Debian bookworm with systemd, runc and units for containerd and a kubelet stand-in.

Made of unpacked packages; what their maintainer scripts would do and a node needs is done here. It holds no containerd:
a release's layer (see `releases`) is laid over it, a box's own writable layer over both.
"""

import shutil
import subprocess
from pathlib import Path

from tests.bed import cache, debian, golang

SUITE = "bookworm"
PACKAGES = [
    *("base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "dbus", "findutils", "grep"),
    *("iproute2", "kmod", "libc-bin", "login", "mount", "passwd", "procps", "runc", "sed", "systemd", "systemd-sysv"),
    "util-linux",
]
UNITS = Path(__file__).with_name("units")
KUBELET = golang.TOOLS / "kubelet"


def folder() -> Path:
    """The root's folder, prepared if need be. It is a lower layer: never write into it."""
    units = {unit.name: unit.read_text() for unit in sorted(UNITS.iterdir())}
    recipe = {"suite": SUITE, "packages": PACKAGES, "units": units, "kubelet": golang.sources(KUBELET), "revision": 1}
    return cache.artefact("node-root", recipe, _build)


def _build(root: Path) -> None:
    debian.unpack(SUITE, PACKAGES, root)
    golang.build(KUBELET, ".", into=root / "usr/bin")
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("dash")
    _write_accounts(root)
    for name, text in {
        "machine-id": "",
        "hosts": "127.0.0.1 localhost\n",
        "resolv.conf": "",
        "fstab": "",
    }.items():
        (root / "etc" / name).write_text(text)
    for path in ("media", "mnt", "opt", "srv", "usr/local/bin", "usr/local/sbin"):
        (root / path).mkdir(parents=True, exist_ok=True)
    (root / "var/log/journal").mkdir(exist_ok=True)  # the journal outlives a power cut
    for unit in UNITS.iterdir():
        shutil.copy(unit, root / "usr/lib/systemd/system")
    subprocess.run(
        ["systemctl", f"--root={root}", "--quiet", "enable", *(unit.name for unit in UNITS.iterdir())], check=True
    )
    subprocess.run(["ldconfig", "-r", root], check=True)


def _write_accounts(root: Path) -> None:
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    for name in ("shadow", "gshadow"):
        (root / "etc" / name).touch(mode=0o640)
    subprocess.run(["systemd-sysusers", f"--root={root}"], check=True, capture_output=True)
