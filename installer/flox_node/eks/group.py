"""What is chosen for a group of nodes, checked: it goes into YAML, HCL and shell as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from flox_node.errors import RefusedError, UsageError

ARCHITECTURES = {"x86_64": "m7i.large", "arm64": "m7g.large"}
"""EKS' names, each with an instance type that fits."""
_FORMS = {
    "cluster": r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}",
    "name": r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?",
    "region": r"[a-z]{2}(-[a-z]+)+-[0-9]+",
    "ami": r"(ami-([0-9a-f]{8}|[0-9a-f]{17}))?",
    "instance_type": r"[a-z0-9-]+\.[a-z0-9-]+",
    "kubernetes": r"1\.[0-9]{2}",
    "payload": r"((https|http|file)://[^\s'\"\\$`]+|oci://[^\s'\"\\$`]+@sha256:[0-9a-f]{64})?",
    "sha256": r"([0-9a-f]{64})?",
}
_GRAVITON = re.compile(r"(a1|[a-z-]+[0-9]+g[a-z]*)\.")
_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_BESIDE = "Managed node groups and Karpenter's EC2 nodes can stand beside them: make one of these for Flox pods."
_REFUSED = {
    "auto-mode": ("EKS Auto Mode runs Bottlerocket, and takes neither an image nor user data.", _BESIDE),
    "fargate": ("A Fargate node is one pod's: nothing can be installed on it.", _BESIDE),
    "bottlerocket": (
        "Bottlerocket has no way to register a runtime handler, and nowhere to put /nix.",
        "Take AL2023 for the Flox nodes: `amiFamily: AmazonLinux2023`; both can be in one cluster.",
    ),
    "al2": (
        "The images of Amazon Linux 2 have ended, and their nodeadm is a script without fragments.",
        "Take AL2023; on old AL2 nodes the DaemonSet (overlay `eks`) still works.",
    ),
    "windows": ("Flox environments are Linux programs.", _BESIDE),
    "ubuntu": (
        "Images and the bootstrap are made for AL2023, and Ubuntu's images for EKS are other ones.",
        "Take AL2023, or let the DaemonSet install these nodes.",
    ),
}
_ALIASES = {"autopilot": "auto-mode", "auto": "auto-mode", "automode": "auto-mode", "amazonlinux2": "al2"}
_FAMILIES = ("bottlerocket", "windows", "ubuntu")  # eksctl and EKS know several of each: BottlerocketFips, Ubuntu2404


@dataclass(frozen=True)
class Group:
    """A group of nodes. `ami`: an image of ami/; without one the stock image fetches `payload` at its first boot.

    Raises:
        UsageError: a value is none of its kind, or they do not fit each other.
    """

    cluster: str
    region: str
    name: str = "flox"
    ami: str = ""
    arch: str = "x86_64"
    instance_type: str = ""
    kubernetes: str = "1.35"
    payload: str = ""
    sha256: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise UsageError(f"{self.arch} is none of {', '.join(ARCHITECTURES)}.")
        if not self.instance_type:
            object.__setattr__(self, "instance_type", ARCHITECTURES[self.arch])
        for name, form in _FORMS.items():
            if not re.fullmatch(form, value := str(getattr(self, name))):
                raise UsageError(f"--{name.replace('_', '-')}: {value!r} is none.")
        if bool(_GRAVITON.match(self.instance_type)) is not (self.arch == "arm64"):
            raise UsageError(
                f"{self.instance_type} is not {self.arch}.", remedy="Give --arch and --instance-type that fit."
            )
        if self.ami and self.payload:
            raise UsageError("An image holds its payload.", remedy="Give --ami, or --payload for the stock image.")
        for name, value in self.labels.items():
            if not _LABEL.fullmatch(name) or not _VALUE.fullmatch(value):
                raise UsageError(f"{name}={value} is no label.")
        if self.minor < 28:
            raise UsageError(f"Kubernetes {self.kubernetes} is too old for AL2023.")

    @property
    def is_baked(self) -> bool:
        """Whether its nodes boot from an image of ours."""
        return bool(self.ami)

    @property
    def containerd(self) -> str:
        """The release line of containerd in EKS' images for this Kubernetes."""
        return "1.7" if self.minor < 30 else "2.1"

    @property
    def minor(self) -> int:
        """35 of Kubernetes 1.35."""
        return int(self.kubernetes.partition(".")[2])


def require_payload(group: Group) -> None:
    """Raise UsageError unless the stock image knows what to fetch."""
    if not group.is_baked and not group.payload:
        raise UsageError(
            "Without an image of ours, the stock one has to fetch the payload at its first boot.",
            remedy="Give --ami (see ami/README.md), or --payload with --sha256.",
        )
    if group.payload and not group.payload.startswith("oci://") and not group.sha256:
        raise UsageError("A payload from a URL needs the digest that it must have.", remedy="Give --sha256.")


def require_lifted(group: Group) -> None:
    """Raise UsageError where nothing of ours could lift the startup taint that a group declares."""
    if group.minor < 31:
        raise UsageError(
            f"Kubernetes {group.kubernetes} is too old for the DaemonSet, and its kubelets report no handlers: "
            "the startup taint would stay for ever.",
            remedy="Upgrade the cluster to 1.31 or newer.",
        )


def require_no_labels(group: Group) -> None:
    """Raise UsageError where labels are given for what declares none."""
    if group.labels:
        raise UsageError(
            "User data declare no labels: autoscalers ask the group for them.",
            remedy="Leave --label out, and declare them where the group is.",
        )


def require_supported(nodes: str) -> None:
    """Raise for nodes that cannot be made so, with the way out.

    Raises:
        RefusedError: they cannot.
        UsageError: nobody knows them.
    """
    name = nodes.lower().replace("_", "-").replace(" ", "-")
    name = next((family for family in _FAMILIES if name.startswith(family)), _ALIASES.get(name, name))
    if name in _REFUSED:
        _refuse(name)
    if name not in ("al2023", "amazonlinux2023"):
        raise UsageError(f"--nodes {nodes}: known are al2023, and as refused {', '.join(_REFUSED)}.")


def _refuse(name: str) -> NoReturn:
    cause, remedy = _REFUSED[name]
    raise RefusedError(cause, remedy=remedy)
