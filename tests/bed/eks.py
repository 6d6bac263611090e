"""The machine that builds an image of EKS nodes, as far as the bootstrap needs it: a chroot into the disk of a box.

No systemd and no containerd runs in it. What EKS' image has and a box has not (curl, gzip, logger) comes from here.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.bed import cache, payload
from tests.bed.platforms import PlatformBox

AMI = Path(__file__).parents[2] / "ami"
_CURL = r"""#!/bin/sh
for word; do
    shift
    if [ "${next-}" ]; then out=$word next=; set -- "$@" -; else set -- "$@" "$word"; fi
    [ "$word" != --output ] || next=1
done
exec chroot /tmp/machine curl "$@" >"$out"
"""
_BUILD = """
folder=$1 layers=$2 ami=$3 curl=$4; shift 4
root=$folder/root
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$folder/disk,workdir=$folder/work" "$root"
mount --rbind /proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp "$ami"/bootstrap.sh "$ami"/scripts/*.sh "$root/tmp"
mkdir "$root/tmp/bin" "$root/tmp/machine"
mount --bind / "$root/tmp/machine"
for applet in gzip logger; do ln -s /usr/bin/busybox "$root/tmp/bin/$applet"; done
printf '%s' "$curl" >"$root/tmp/bin/curl"
chmod 755 "$root/tmp/bin/curl"
exec env -i PATH=/tmp/bin:/usr/sbin:/usr/bin:/sbin:/bin FLOX_NODE_CONSOLE=/dev/null chroot "$root" "$@"
"""


def archive() -> Path:
    """The payload as a .tar.gz, which needs no program that EKS' image lacks."""
    folder = payload.folder()
    packed = folder.with_name("payload.tar.gz")
    if not packed.exists():
        with cache.locked("payload-gz"), cache.progress("payload.tar.gz"):
            partial = folder.with_name("partial.tar.gz")
            subprocess.run(["tar", "-I", "gzip -1", "-cf", partial, "-C", folder, "."], check=True)
            partial.rename(packed)
    return packed


def in_image(box: PlatformBox, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the disk of a box that is off; the scripts of ami/ are in /tmp."""
    words = ["unshare", "--mount", "sh", "-euc", _BUILD, "sh", str(box.folder), box.layers, str(AMI), _CURL]
    return subprocess.run([*words, *command], capture_output=True, text=True, check=False, timeout=300)


def bake(box: PlatformBox, url: str, sha256: str) -> subprocess.CompletedProcess[str]:
    """Run the bootstrap as an image build does."""
    settings = (f"FLOX_NODE_PAYLOAD={url}", f"FLOX_NODE_SHA256={sha256}")
    return in_image(box, "env", *settings, "sh", "/tmp/bootstrap.sh", "--image-build")
