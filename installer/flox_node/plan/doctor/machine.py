"""The machine: folders, space, SELinux, Nix, the kubelet and its labels."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Any

from flox_node.host import mounts, selinux
from flox_node.host.probes import FolderProbe, Space, space, try_folder
from flox_node.host.selinux import Mode
from flox_node.names import CURRENT, ENABLED, NOT_READY, PREFIX
from flox_node.plan.doctor.check import Check, State, Verdict, ok, problem, told
from flox_node.plan.doctor.node import Node
from flox_node.platforms import facts
from flox_node.state.ledger import STATE_DIR

LEAST_BYTES = 1 << 30  # an environment of a common size, and room for the next
LEAST_INODES = 20_000
_LABELLED = ("/nix", "/nix/store", PREFIX, f"{CURRENT}/bin/flox-runtime")
_RUN = "/run/flox-node"  # made by us; the others an administrator may have given a disk of their own
_OURS = (_RUN, PREFIX, "/etc/flox-node", STATE_DIR)
_MOUNTED_BY_US = ("/run/flox-node/realise",)
# Files of the node's own Flox and Nix: their settings that pods could need, and what has them for pods.
_NIX_SETTINGS = {
    "substituters": "nix.substituters",
    "extra-substituters": "nix.extra_substituters",
    "trusted-public-keys": "nix.trusted_public_keys",
    "extra-trusted-public-keys": "nix.extra_trusted_public_keys",
    "netrc-file": "nix.netrc",
    "ssl-cert-file": "network.ca_file",
}
_IGNORED = {
    "/etc/flox.toml": {"floxhub_url": "floxhub.url", "floxhub_token": "the pod's own secret"},
    "/etc/nix/nix.conf": _NIX_SETTINGS,
    "/etc/nix/nix.custom.conf": _NIX_SETTINGS,  # of Determinate's installer; what others include is their own
    "/root/.config/nix/nix.conf": _NIX_SETTINGS,
    "/etc/nix/netrc": {"machine": "nix.netrc"},
}
_NIX_MARKS = ("/etc/nix/nix.conf", "/nix/var/nix/daemon-socket/socket", "/etc/systemd/system/nix-daemon.service")
_LABEL_FLAGS = ("--node-label", "--register-with-taints")
_LIKE_OURS = re.compile(r"(?<![\w./-])(flox[\w.-]*(?:/[\w.-]+)?)[=:]\s*\"?([\w.-]*)")


def _targets(node: Node) -> list[FolderProbe]:
    config_folder = posixpath.dirname(node.config_path)
    return [
        try_folder(node.host, folder, execute=folder in ("/opt", "/nix"))
        for folder in ("/opt", "/nix", config_folder, "/var/lib", "/etc/systemd/system")
    ]


def decide_writable(probes: list[FolderProbe]) -> Verdict:
    """Found by really writing: mount options and attributes do not tell all."""
    return told([f"{probe.folder}: {probe.not_writable}" for probe in probes if probe.not_writable])


def decide_executable(probes: list[FolderProbe]) -> Verdict:
    """Found by really running a program there."""
    return told([f"{probe.folder}: {probe.not_executable}" for probe in probes if probe.not_executable])


def _space(node: Node) -> list[Space]:
    return [space(node.host, folder) for folder in ("/nix", "/opt", "/var/lib")]


def decide_bytes(spaces: list[Space]) -> Verdict:
    """Only /nix needs much; a few MiB do for the rest."""
    causes = [
        f"{each.folder}: {each.free_bytes >> 20} MiB free"
        for each in spaces
        if each.free_bytes < (LEAST_BYTES if each.folder == "/nix" else LEAST_BYTES >> 6)
    ]
    return told(causes, otherwise=", ".join(f"{each.folder} {each.free_bytes >> 20} MiB" for each in spaces))


def decide_inodes(spaces: list[Space]) -> Verdict:
    """A store is many small files."""
    causes = [
        f"{each.folder}: {each.free_inodes} inodes free"
        for each in spaces
        if each.free_inodes is not None and each.free_inodes < (LEAST_INODES if each.folder == "/nix" else 1000)
    ]
    return told(causes)


@dataclass(frozen=True)
class Labels:
    """What SELinux does here, and which of our files carry another type than they should: path, has, should."""

    mode: Mode
    wrong: tuple[tuple[str, str, str], ...]


def _selinux(node: Node) -> Labels:
    mode = selinux.mode(node.host.files.root)
    wrong = []
    for path in _LABELLED if mode is not Mode.ABSENT and node.installed else ():
        real = node.host.files.real(path)
        should = selinux.type_of("/" + str(real.relative_to(node.host.files.root)))
        has = selinux.type_at(real)
        if real.exists() and should is not None and has != should:
            wrong.append((path, has or "no label", should))
    return Labels(mode, tuple(wrong))


def decide_selinux(labels: Labels) -> Verdict:
    """A wrong type stops things where SELinux is enforcing, and only there."""
    causes = [f"{path} has the type {has} instead of {should}" for path, has, should in labels.wrong]
    return told(causes, otherwise=labels.mode, state=State.PROBLEM if labels.mode is Mode.ENFORCING else State.WARNING)


def _nix_folder(node: Node) -> list[tuple[str, str]]:
    links = ((path, node.host.files.readlink(path)) for path in ("/nix", "/nix/store"))
    return [(path, target) for path, target in links if target is not None]


def decide_nix_folder(links: list[tuple[str, str]]) -> Verdict:
    """Nix resolves its store's path and refuses a symlink in it."""
    return told([f"{path} is a symlink to {target}" for path, target in links])


def _foreign_nix(node: Node) -> list[str]:
    found = [path for path in _NIX_MARKS if node.host.files.lexists(path)]
    found += [f"nix-daemon (pid {process.pid})" for process in node.host.processes.named("nix-daemon")]
    groups = node.host.files.read_optional("/etc/group") or b""
    return [*found, *(["the group nixbld"] if re.search(rb"^nixbld:", groups, re.MULTILINE) else [])]


def decide_foreign_nix(found: list[str]) -> Verdict:
    """It does no harm by itself: flox-node's Nix has its own settings. But its collector works on the same store."""
    return told([f"another Nix is or was installed here: {', '.join(found)}"] if found else [], state=State.WARNING)


def _ignored(node: Node) -> list[tuple[str, str]]:
    """Settings of the node's own Flox and Nix that could have been meant for pods: file and key."""
    found = []
    for file, keys in _IGNORED.items():
        text = (node.host.files.read_optional(file) or b"").decode("utf-8", "replace")
        named = re.findall(r"^\s*([a-z_-]+)(?:\s*=\s*|[ \t]+)\S", text, re.MULTILINE)
        found += [(file, key) for key in dict.fromkeys(named) if key in keys]
    return found


def decide_ignored(found: list[tuple[str, str]]) -> Verdict:
    """A realisation reads none of them: nothing of the node decides what a pod gets."""
    lines = [f"{key} of {file} is ignored; the policy has {_IGNORED[file][key]}" for file, key in found]
    return told(lines, state=State.WARNING)


def _foreign_mounts(node: Node) -> list[tuple[str, str]]:
    return [
        (mount.target, mount.kind)
        for mount in mounts.of_node(node.host.files)
        for folder in _OURS
        if mounts.is_below(mount.target, folder) or mount.target == folder == _RUN
        if mount.target not in _MOUNTED_BY_US
    ]


def decide_foreign_mounts(found: list[tuple[str, str]]) -> Verdict:
    """What is mounted over a folder of ours hides our files from us, and shows others' to us."""
    return told([f"{target} is hidden by a mount ({kind}) that is not flox-node's" for target, kind in found])


def _kubelet(node: Node) -> list[str]:
    return [f"{process.argv[0] if process.argv else process.exe} (pid {process.pid})" for process in node.kubelets]


def decide_kubelet(found: list[str]) -> Verdict:
    """Without a kubelet there are no pods."""
    return (
        ok(", ".join(found))
        if found
        else problem(f"no kubelet runs on this node ({', '.join(facts(lambda each: each.kubelets))})")
    )


def _labels(node: Node) -> dict[str, str]:
    """The words about Flox in what the kubelet is given as labels and taints, by where they stand."""
    given = {}
    for process in node.kubelets:
        wanted = [
            argument
            for before, argument in zip(("", *process.argv), process.argv, strict=False)
            if any(
                name.startswith(("--node-labels", "--node-label", "--register-with-taints"))
                for name in (before, argument)
            )
        ]
        given[f"the arguments of pid {process.pid}"] = "\n".join(wanted)
    for path in facts(lambda platform: platform.kubelet_flags):
        data = node.host.files.read_optional(path)
        if data is not None:
            given[path] = data.decode(errors="replace")
    return {where: text for where, text in given.items() if "flox" in text}


def decide_labels(given: dict[str, str]) -> Verdict:
    """One label and one taint are ours; names that resemble them select no node."""
    causes = []
    for where, text in given.items():
        for key, value in _LIKE_OURS.findall(text):
            if key == NOT_READY or (key == ENABLED and value in ("true", "false")):
                continue
            causes.append(f"{where}: {key}={value}")
    return told([f"unknown to flox-node: {', '.join(causes)}"] if causes else [], state=State.WARNING)


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "targets-writable",
        "the folders that an install writes to can be written",
        "remount read-write; where the image is read-only by design, mount a disk there or use a supported node image",
        _targets,
        decide_writable,
    ),
    Check(
        "targets-executable",
        "programs can be run from /opt and /nix",
        "remount without noexec: `mount -o remount,exec PATH`, and the same in /etc/fstab or the node image",
        _targets,
        decide_executable,
    ),
    Check(
        "disk-space",
        "there is room for environments",
        "free disk space, mount a larger disk, or move the store with `flox-node install --nix-dir DIR`",
        _space,
        decide_bytes,
    ),
    Check(
        "inodes",
        "there are inodes for environments",
        "remove small files, or put the store on a file system with more inodes with `flox-node install --nix-dir DIR`",
        _space,
        decide_inodes,
    ),
    Check(
        "selinux",
        "our files carry the SELinux types that containerd, systemd and containers need",
        "`flox-node install --repair` with the same payload sets them anew; so that a `restorecon -R /` keeps them: "
        "`semanage fcontext -a -t usr_t '/nix(/.*)?'`, and bin_t for '/opt/flox-node/payloads/[^/]*/bin(/.*)?'",
        _selinux,
        decide_selinux,
    ),
    Check(
        "nix-folder",
        "/nix is a folder and no symlink",
        "remove the link and install with `flox-node install --nix-dir DIR`, which mounts DIR at /nix",
        _nix_folder,
        decide_nix_folder,
    ),
    Check(
        "foreign-mounts",
        "nothing is mounted over the folders of flox-node",
        "find the pod or unit that mounts it (a volume with mountPropagation Bidirectional, say), stop it, and "
        "`umount` that path; then delete the Flox pods that were started since",
        _foreign_mounts,
        decide_foreign_mounts,
    ),
    Check(
        "foreign-nix",
        "no other Nix uses this store",
        "nothing has to be done: flox-node keeps the store and that Nix' settings; do not delete its garbage "
        "collection roots below /nix/var/nix/gcroots/flox-node. Left-overs of a removed Nix can go",
        _foreign_nix,
        decide_foreign_nix,
    ),
    Check(
        "ignored-settings",
        "no settings of the node's own Flox or Nix are meant for pods",
        "write what pods need of them into the node's policy: `flox-node policy explain KEY`",
        _ignored,
        decide_ignored,
    ),
    Check(
        "kubelet-running",
        "a kubelet runs",
        "`systemctl start kubelet`, `journalctl -u kubelet`",
        _kubelet,
        decide_kubelet,
    ),
    Check(
        "labels",
        "the kubelet's own labels about Flox are known",
        "the label is flox.dev/enabled=true and the startup taint flox.dev/not-ready; remove the others from the "
        "kubelet's settings and the node",
        _labels,
        decide_labels,
    ),
)
