"""Any node whose containerd is a systemd service of its own: kubeadm, kubespray, image-builder."""

from flox_node.platforms.platform import Layer, Platform

PLATFORM = Platform(
    name="plain",
    title="kubeadm and the like on Debian, Ubuntu, the RHEL family",
    layer=Layer.FALLBACK,
    signs=(),
    needed=0,
    kubelet_flags=("/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"),
    kubelet_configs=("/var/lib/kubelet/config.yaml",),
    durable="/etc/containerd/config.toml, or a drop-in where it imports a pattern (containerd 2)",
)
