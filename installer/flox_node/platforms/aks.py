"""AKS: the configuration is written once, when the node is provisioned or reimaged."""

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

PLATFORM = Platform(
    name="aks",
    title="AKS, Ubuntu and Azure Linux",
    layer=Layer.HOST,
    signs=(
        Sign(SignKind.FILE, "/etc/kubernetes/azure.json"),
        Sign(SignKind.OS, "ID=ubuntu|ID=azurelinux|ID=mariner"),
    ),
    durable="/etc/containerd/config.toml; a reimaged node is installed anew",
    rewritten="the provisioning, once",
)
