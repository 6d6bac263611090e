"""kind: a node in a container; its entrypoint edits the configuration by literal text, which has to stay as it is."""

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

PLATFORM = Platform(
    name="kind",
    title="kind",
    layer=Layer.CONTAINER,
    signs=(
        Sign(SignKind.FILE, "/kind/product_name|/kind/bin"),
        Sign(SignKind.FILE, "/etc/containerd/cri-base.json"),
        Sign(SignKind.FILE, "/kind/version|/kind/manifests"),
    ),
    durable="/etc/containerd/config.toml (schema 2, whatever the containerd)",
    rewritten="nobody; its entrypoint edits single lines",
)
