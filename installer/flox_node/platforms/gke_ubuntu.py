"""GKE on Ubuntu: the node's configuration script writes the file at every boot, and knows no handlers."""

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

PLATFORM = Platform(
    name="gke-ubuntu",
    title="GKE, Ubuntu",
    layer=Layer.HOST,
    signs=(
        Sign(SignKind.FILE, "/home/kubernetes/kube-env|/home/kubernetes/bin"),
        Sign(SignKind.OS, "ID=ubuntu"),
    ),
    durable="none: /etc/containerd/config.toml is registered again after each boot",
    rewritten="GKE, at every boot",
)
