"""k3s and RKE2: one service is kubelet, containerd's parent and, on servers, the control plane."""

from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.registration import Rancher, Registration
from flox_node.plan.platforms.platform import Layer, Platform, Sign, SignKind

_SOCKET = "/run/k3s/containerd/containerd.sock"  # RKE2's, too
_DEADLINE_S = 300.0  # a server's restart takes etcd, the API server and the controllers along


def _register(config: str, _reader: Reader) -> Registration:
    return Rancher(config)


def _platform(name: str, title: str, units: tuple[str, ...]) -> Platform:
    return Platform(
        name=name,
        title=title,
        layer=Layer.DISTRIBUTION,
        signs=(
            Sign(SignKind.UNIT, "|".join(units)),
            Sign(SignKind.PROGRAM, f"*/{name}/data/*/bin/*"),
            Sign(SignKind.CONFIG, f"*/{name}/agent/etc/containerd/config.toml"),
            Sign(SignKind.SOCKET, _SOCKET),
        ),
        durable=f"/var/lib/rancher/{name}/agent/etc/containerd/: config-v3.toml.d/50-flox-node.toml where it is "
        "imported, else config-v3.toml.tmpl (containerd 2) or config.toml.tmpl",
        rewritten=f"{name}, at every start",
        socket=_SOCKET,
        units=units,
        restart_deadline_s=_DEADLINE_S,
        register=_register,
    )


PLATFORMS = (
    _platform("k3s", "k3s, server and agent", ("k3s.service", "k3s-agent.service")),
    _platform("rke2", "RKE2, server and agent", ("rke2-server.service", "rke2-agent.service")),
)
