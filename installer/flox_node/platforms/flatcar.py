"""Flatcar: the image's configuration is read-only; the unit says which one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flox_node.platforms.platform import Layer, Platform, Sign, SignKind

if TYPE_CHECKING:
    from flox_node.containerd.config.effective import Reader
    from flox_node.containerd.config.registration import Registration
    from flox_node.containerd.config.version import ContainerdVersion

_CONFIG = "/etc/containerd/config.toml"
_UNIT_FILE = "/etc/systemd/system/containerd.service.d/90-flox-node.conf"


def _register(config: str, reader: Reader, version: ContainerdVersion) -> Registration:
    from flox_node.containerd.config.registration import Imported, Plain, Relocated

    if config.startswith("/usr/"):
        return Imported.found_in(reader, config, version) or Relocated(_CONFIG, config, _UNIT_FILE)
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
    durable=f"/etc/containerd/conf.d/50-flox-node.toml where the image's imports it, else {_CONFIG}, a copy of the "
    f"image's, and {_UNIT_FILE}",
    register=_register,
)
