"""MicroK8s: a snap whose configuration is rendered from a template that survives its updates."""

from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.registration import Registration, Template
from flox_node.plan.platforms.platform import Layer, Platform, Sign, SignKind

_TEMPLATE = "/var/snap/microk8s/current/args/containerd-template.toml"
_UNIT = "snap.microk8s.daemon-containerd.service"


def _register(config: str, _reader: Reader) -> Registration:
    return Template(config, _TEMPLATE)


PLATFORM = Platform(
    name="microk8s",
    title="MicroK8s",
    layer=Layer.DISTRIBUTION,
    signs=(
        Sign(SignKind.SOCKET, "/var/snap/microk8s/common/run/containerd.sock"),
        Sign(SignKind.UNIT, _UNIT),
        Sign(SignKind.PROGRAM, "/snap/microk8s/*/bin/containerd"),
        Sign(SignKind.CONFIG, "/var/snap/microk8s/*/args/containerd.toml"),
    ),
    durable=_TEMPLATE,
    rewritten="the snap, at every start",
    socket="/var/snap/microk8s/common/run/containerd.sock",
    units=(_UNIT,),
    register=_register,
)
