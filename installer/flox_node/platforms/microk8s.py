"""MicroK8s: a snap whose configuration is rendered from a template that survives its updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

if TYPE_CHECKING:
    from flox_node.containerd.config.effective import Reader
    from flox_node.containerd.config.registration import Registration
    from flox_node.containerd.config.version import ContainerdVersion

_TEMPLATE = "/var/snap/microk8s/current/args/containerd-template.toml"
_COMMON = "/var/snap/microk8s/common"
_SOCKET = f"{_COMMON}/run/containerd.sock"
_UNIT = "snap.microk8s.daemon-containerd.service"


def _register(config: str, _reader: Reader, _version: ContainerdVersion) -> Registration:
    from flox_node.containerd.config.registration import Template

    return Template(config, _TEMPLATE)


PLATFORM = Platform(
    name="microk8s",
    title="MicroK8s",
    layer=Layer.DISTRIBUTION,
    signs=(
        Sign(SignKind.SOCKET, _SOCKET),
        Sign(SignKind.UNIT, _UNIT),
        Sign(SignKind.PROGRAM, "/snap/microk8s/*/bin/containerd"),
        Sign(SignKind.CONFIG, "/var/snap/microk8s/*/args/containerd.toml"),
    ),
    durable=_TEMPLATE,
    rewritten="the snap, at every start",
    socket=_SOCKET,
    units=(_UNIT, "snap.microk8s.daemon-kubelite.service"),
    state=f"{_COMMON}/run/containerd",
    kubelets=("kubelite",),
    kubelet_root=f"{_COMMON}/var/lib/kubelet",
    kubelet_flags=("/var/snap/microk8s/current/args/kubelet",),
    register=_register,
)
