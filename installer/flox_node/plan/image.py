"""An image of nodes to come: everything of an install that needs no running containerd, and a judgement of the result.

What depends on the machine is left to the first boot (`maintenance.boot`): the inner runtime, the image in containerd,
the SELinux types. The receipt names no machine until then.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flox_node.actions import RegisterHandler, action_from_json
from flox_node.actions.bake_handler import BakeHandler
from flox_node.containerd.live import daemon
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Daemon, Running
from flox_node.errors import FloxNodeError, RefusedError
from flox_node.host import Host
from flox_node.host.lock import exclusive
from flox_node.host.systemd import StoppedSystemd
from flox_node.payload import Payload
from flox_node.plan import labels
from flox_node.plan.detect import recognise
from flox_node.plan.planner import placing, registering, units
from flox_node.plan.runs import receipt
from flox_node.plan.steps import Outcome, Report, StepResult, carry_out_all
from flox_node.platforms import Platform
from flox_node.settings import Settings
from flox_node.state.ledger import Ledger

PLATFORMS = ("eks-al2023", "kind")
"""Where an image can hold the handler for good: in a fragment that nodeadm reads, in a file that nobody rewrites."""
FREE_BYTES = 1 << 30  # as EKS' own builds leave at least
_INSTANCE_STORE = "/mnt/k8s-disks"
_SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_KEYS = ("/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ed25519_key")


@dataclass(frozen=True)
class Judgement:
    """What a built image lacks; nothing in a good one."""

    version: str
    payload_id: str
    problems: tuple[str, ...]


def bake(host: Host, payload: Payload, settings: Settings, report: Report) -> list[StepResult]:
    """Install into the image whose root file system the host is; nothing is started or restarted.

    Raises:
        RefusedError: nodes of this platform make their containerd's configuration of nothing that an image could hold.
        FloxNodeError: see `runs.install`.
    """
    host = dataclasses.replace(host, systemd=StoppedSystemd())
    platform = _platform(host, settings)
    if settings.nix_dir and settings.nix_dir.startswith(_INSTANCE_STORE):
        raise RefusedError(
            f"{settings.nix_dir} is on a node's own disks, which nodeadm makes ready long after the boot has begun.",
            remedy="Keep the store on the root volume, and give that the room; an image has no other disk.",
        )
    with exclusive(host.files), _self_of_nix(host, payload):
        ledger = Ledger.load(host.files)
        image = _containerd(host, platform)
        actions = (
            *placing(host, payload, settings, image),
            *units(image),
            BakeHandler(**registering(host, platform, settings, image), running=image),
        )
        results = carry_out_all(host, ledger, actions, report)
        if ledger.interrupted or any(result.outcome is Outcome.DONE for result in results):
            ledger.conclude(receipt(payload, ledger, machine_id=""))
        labels.restore(host, ledger)
        return results


@contextmanager
def _self_of_nix(host: Host, payload: Payload) -> Iterator[None]:
    """Nix asks /proc which program it is, and a build in a container may mount no /proc below another root."""
    itself, program = "/proc/self", payload.manifest.entry_points.get("nix-store")
    if program is None or not host.files.is_dir("/proc") or host.files.lexists(itself):
        yield
        return
    host.files.mkdir(itself)
    try:
        host.files.symlink_atomic(f"{itself}/exe", program)
        yield
    finally:
        host.files.remove_tree(itself)


def judge(host: Host, settings: Settings) -> Judgement:
    """Look at a built image: is all there that a node needs, and nothing that no two nodes may share?

    Raises:
        CorruptError, RefusedError: its receipt cannot be read, or it is no image of a node.
    """
    host = dataclasses.replace(host, systemd=StoppedSystemd())
    image = _containerd(host, _platform(host, settings))
    ledger = Ledger.load(host.files)
    found = ledger.receipt
    problems = [] if found else ["flox-node is not installed in it"]
    if ledger.interrupted:
        problems.append("an install was killed: run it again")
    if found and found.machine_id:
        problems.append("it was installed on a running node, not with --image-build")
    problems += _missing(host, ledger, image)
    wrong = labels.wrong(host, ledger)
    if wrong:
        problems.append(f"{len(wrong)} files have another SELinux type than theirs, as {wrong[0]}")
    problems += _left_over(host)
    room = os.statvfs(host.files.root)
    if room.f_bavail * room.f_frsize < FREE_BYTES:
        problems.append(f"only {room.f_bavail * room.f_frsize >> 20} MiB are free on /: give the image a larger volume")
    return Judgement(found.version if found else "", found.payload_id if found else "", tuple(problems))


def _missing(host: Host, ledger: Ledger, image: Running) -> Iterator[str]:
    for record in ledger.records.values():
        try:
            action = action_from_json(record.action)
            if isinstance(action, RegisterHandler):
                fields = {field.name: getattr(action, field.name) for field in dataclasses.fields(action)}
                action = BakeHandler(**{**fields, "running": image})
            gap = action.inspect(host)
        except FloxNodeError as error:
            yield error.cause
        else:
            if gap is not None:
                yield gap.reason


def _left_over(host: Host) -> Iterator[str]:
    """What an image must not hold, as EKS' own builds remove it: keys, and the identity of the building machine."""
    homes = ["/root", *(f"/home/{name}" for name in host.files.listdir("/home"))]
    for path in (*_KEYS, *(f"{home}/.ssh/authorized_keys" for home in homes)):
        if host.files.lexists(path):
            yield f"{path} is left over from the build"
    machine = (host.files.read_optional("/etc/machine-id") or b"").strip()
    if machine not in (b"", b"uninitialized"):
        yield "/etc/machine-id is not empty: all nodes of this image would have the same"


def _platform(host: Host, settings: Settings) -> Platform:
    platform = recognise(host, socket=settings.socket, named=settings.platform).platform
    if platform.refusal is not None:
        raise RefusedError(platform.refusal.reason, remedy=platform.refusal.instead)
    if platform.name not in PLATFORMS:
        raise RefusedError(
            f"Images are made for {', '.join(PLATFORMS)}; this is {platform.title}.",
            remedy="Build from an EKS-optimised AL2023 image or kind's; elsewhere let the DaemonSet install the nodes.",
        )
    return platform


def _containerd(host: Host, platform: Platform) -> Running:
    """The containerd that the image's nodes will run."""
    program = host.processes.which("containerd", _SEARCH_PATH)
    if program is None:
        raise RefusedError("The image has no containerd.", remedy=f"Build from an image of {platform.title}.")
    version = daemon.version_of(host, program)
    here = Daemon(platform.socket, 0, program, daemon.DEFAULT_CONFIG, platform.units[0], _SEARCH_PATH)
    return Running(here, CriStatus(str(version), {}, "", {}))
