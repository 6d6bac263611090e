"""Flatcar: the image's configuration is read-only; the unit says which one is used."""

from flox_node.containerd.config.effective import Reader
from flox_node.containerd.config.registration import Plain, Registration, Relocated
from flox_node.plan.platforms.platform import Layer, Platform, Sign, SignKind

_CONFIG = "/etc/containerd/config.toml"
_UNIT_FILE = "/etc/systemd/system/containerd.service.d/90-flox-node.conf"


def _register(config: str, reader: Reader) -> Registration:
    if config.startswith("/usr/"):
        return Relocated(_CONFIG, config, _UNIT_FILE)
    return Relocated.found_in(reader, config, _UNIT_FILE) or Plain(config)


PLATFORM = Platform(
    name="flatcar",
    title="Flatcar Container Linux",
    layer=Layer.HOST,
    signs=(
        Sign(SignKind.OS, "ID=flatcar"),
        Sign(SignKind.FILE, "/usr/share/containerd/config.toml"),
        Sign(SignKind.FILE, "/usr/share/flatcar"),
    ),
    durable=f"{_CONFIG}, a copy of the image's, and {_UNIT_FILE}",
    register=_register,
)
