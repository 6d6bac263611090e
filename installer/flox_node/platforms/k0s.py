"""k0s: containerd is its child; drop-ins of CRI runtimes have a folder of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flox_node.platforms.platform import Layer, Platform, Renderer, Sign, SignKind

if TYPE_CHECKING:
    from flox_node.containerd.config.effective import Reader
    from flox_node.containerd.config.registration import Registration
    from flox_node.containerd.config.version import ContainerdVersion

_MANAGED = b"# k0s_managed=true"
_UNITS = ("k0sworker.service", "k0scontroller.service")


def _register(config: str, reader: Reader, _version: ContainerdVersion) -> Registration:
    from flox_node.containerd.config.registration import K0s, Plain

    if (reader.read_optional(config) or b"").startswith(_MANAGED):
        return K0s(config, "/etc/k0s/containerd.d")
    return Plain(config)  # an administrator took it over


PLATFORM = Platform(
    name="k0s",
    title="k0s, worker and controller with a worker",
    layer=Layer.DISTRIBUTION,
    signs=(
        Sign(SignKind.SOCKET, "/run/k0s/containerd.sock"),
        Sign(SignKind.UNIT, "|".join(_UNITS)),
        Sign(SignKind.PROGRAM, "*/k0s/bin/containerd"),
        Sign(SignKind.CONFIG, "/etc/k0s/containerd.toml"),
    ),
    durable="/etc/k0s/containerd.d/50-flox-node.toml",
    rewritten="k0s, at every start",
    renderer=Renderer("k0s", "/etc/k0s/containerd.toml", "at every start", (_MANAGED,)),
    socket="/run/k0s/containerd.sock",
    units=_UNITS,
    state="/run/k0s/containerd",
    kubelet_root="/var/lib/k0s/kubelet",
    restart_deadline_s=180.0,
    register=_register,
)
