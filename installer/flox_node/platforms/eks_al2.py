"""EKS on Amazon Linux 2: bootstrap.sh copies the image's file over the configuration when the two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

if TYPE_CHECKING:
    from flox_node.containerd.config.effective import Reader
    from flox_node.containerd.config.registration import Registration
    from flox_node.containerd.config.version import ContainerdVersion

_SOURCE = "/etc/eks/containerd/containerd-config.toml"


def _register(config: str, _reader: Reader, _version: ContainerdVersion) -> Registration:
    from flox_node.containerd.config.registration import Copied

    return Copied(config, _SOURCE)


PLATFORM = Platform(
    name="eks-al2",
    title="EKS, Amazon Linux 2",
    layer=Layer.HOST,
    signs=(
        Sign(SignKind.FILE, "/etc/eks/bootstrap.sh"),
        Sign(SignKind.OS, "ID=amzn&VERSION_ID=2"),
        Sign(SignKind.FILE, _SOURCE),
    ),
    durable=f"{_SOURCE}, and /etc/containerd/config.toml",
    rewritten="bootstrap.sh, whenever it runs",
    kubelet_configs=("/etc/kubernetes/kubelet/kubelet-config.json",),
    register=_register,
)
