"""EKS on Amazon Linux 2023: nodeadm writes the configuration at every boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flox_node.platforms.platform import Layer, Platform, Renderer, Sign, SignKind

if TYPE_CHECKING:
    from flox_node.containerd.config.effective import Reader
    from flox_node.containerd.config.registration import Registration
    from flox_node.containerd.config.version import ContainerdVersion


def _register(config: str, _reader: Reader, _version: ContainerdVersion) -> Registration:
    from flox_node.containerd.config.registration import NodeConfig

    return NodeConfig(config)


PLATFORM = Platform(
    name="eks-al2023",
    title="EKS, Amazon Linux 2023",
    layer=Layer.HOST,
    signs=(
        Sign(SignKind.FILE, "/usr/bin/nodeadm"),
        Sign(SignKind.OS, "ID=amzn&VERSION_ID=2023"),
        Sign(SignKind.FILE, "/etc/eks/nodeadm.d"),
    ),
    durable="/etc/eks/nodeadm.d/50-flox-node.yaml",
    rewritten="nodeadm, at every boot",
    renderer=Renderer("nodeadm", "/etc/containerd/*", "at every boot"),
    kubelet_configs=("/etc/kubernetes/kubelet/config.json",),
    register=_register,
)
