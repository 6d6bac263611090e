"""minikube: built on kind's image (docker, podman), or a virtual machine whose root is in memory."""

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

PLATFORM = Platform(
    name="minikube",
    title="minikube",
    layer=Layer.TOOL,
    signs=(
        Sign(SignKind.FILE, "/var/lib/minikube"),
        Sign(SignKind.FILE, "/kic.txt"),
        Sign(SignKind.OS, "ID=buildroot"),
    ),
    durable="/etc/containerd/config.toml; in a virtual machine nothing: install again after its start",
    rewritten="nobody; `minikube start` edits single lines",
)
