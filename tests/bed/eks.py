"""Where the bootstrap runs: in the user data of a node, and on the machine that builds an image of EKS nodes.

The latter is a chroot into the disk of a box; no systemd and no containerd runs in it. What EKS' image has and a box
has not (curl, gzip, logger) comes from here.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.bed import cache, payload
from tests.bed.box import NodeBox
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


USER_DATA_UNIT = "user-data.service"
_SERVED = "/payload.tar.gz"
_USER_DATA = """\
[Unit]
After=nodeadm-config.service
Before=containerd.service kubelet.service nodeadm-run.service

[Service]
Type=oneshot
Environment=FLOX_NODE_PAYLOAD=file://{payload} FLOX_NODE_SHA256={sha256} FLOX_NODE_PATIENCE_S=60
ExecStart=/bin/sh /usr/local/bin/bootstrap.sh
"""
# Of curl only what a file:// needs; what is not there is refused, as by a web server.
_CURL_OF_FILES = f"""\
#!/bin/sh
[ -e {_SERVED} ] || {{ echo "curl: (22) The requested URL returned error: 404" >&2; exit 22; }}
for word; do [ ! "$next" ] || out=$word; next=; [ $word != --output ] || next=1; done
exec cp {_SERVED} $out
"""


def put_user_data(box: NodeBox, sha256: str) -> None:
    """Give a node that is off the bootstrap, which it runs at every boot, where cloud-init runs user data."""
    disk = box.folder / "disk"
    programs = disk / "usr/local/bin"
    programs.mkdir(parents=True, exist_ok=True)
    shutil.copy(AMI / "bootstrap.sh", programs)
    for applet in ("gzip", "logger"):
        (programs / applet).symlink_to("/usr/bin/busybox")
    (programs / "curl").write_text(_CURL_OF_FILES)
    (programs / "curl").chmod(0o755)
    box.write(f"etc/systemd/system/{USER_DATA_UNIT}", _USER_DATA.format(payload=_SERVED, sha256=sha256))
    (disk / f"etc/systemd/system/multi-user.target.wants/{USER_DATA_UNIT}").symlink_to(f"../{USER_DATA_UNIT}")


def serve_payload(box: NodeBox) -> None:
    """Let the node's user data find the payload from its next boot on; until then the server has none."""
    shutil.copy(archive(), box.folder / "disk" / _SERVED.lstrip("/"))
