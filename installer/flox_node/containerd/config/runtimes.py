"""What a merged configuration means for the CRI: is it on, does it load, which handlers are there, which is default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flox_node.containerd.config import schema
from flox_node.containerd.config.merge import STAYS_IN_GRPC
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

_SNAPSHOTTERS = frozenset(("aufs", "blockfile", "btrfs", "devmapper", "erofs", "native", "overlayfs", "zfs"))
_SNAPSHOTTERS_OF_K3S = frozenset(("fuse-overlayfs", "nix", "stargz"))  # its build of containerd has more
_IMAGE_DEFAULTS = {"snapshotter": "overlayfs", "disable_snapshot_annotations": True, "discard_unpacked_layers": False}


@dataclass(frozen=True)
class CriSettings:
    """The CRI of one configuration.

    `plugin` is the id whose table counts, `runtimes` all handlers that are in force with their tables (built-in `runc`
    included). `state` says whether kubelet would get an answer, `reason` why not.
    """

    state: Literal["ok", "disabled", "dead"]
    reason: str
    plugin: str
    default_runtime: str
    runtimes: dict[str, dict[str, Any]]
    images: dict[str, Any]
    """The image side where it differs from the built-in defaults, because adding a runtime can switch settings on."""

    def same_but(self, other: CriSettings, handler: str) -> bool:
        """Whether everything but this handler is as in `other`, and the handler is there."""
        return handler in self.runtimes and self.same_handlers_but(other, handler) and self.images == other.images

    def same_handlers_but(self, other: CriSettings, handler: str) -> bool:
        """Whether the CRI loads and has the runtimes of `other`, this handler apart."""
        mine = {name: table for name, table in self.runtimes.items() if name != handler}
        theirs = {name: table for name, table in other.runtimes.items() if name != handler}
        return (self.state, self.default_runtime, mine) == (other.state, other.default_runtime, theirs)


def interpret(merged: dict[str, Any], containerd: ContainerdVersion) -> CriSettings:
    """Read the CRI out of `merge.merge`'s result. Raises RefusedError where a wrong type stops the daemon."""
    plugin = _plugin_in_force(merged, containerd)
    settings = _table(schema.table(merged, "plugins"), plugin)
    section = _table(settings, "containerd")
    files = {name: _table(_table(section, "runtimes"), name) for name in _table(section, "runtimes")}
    builtin: dict[str, dict[str, Any]] = {schema.BUILTIN_DEFAULT: {"runtime_type": schema.RUNC_V2}}
    default = section.get("default_runtime_name", schema.BUILTIN_DEFAULT)

    if containerd.keeps_builtin_runc:
        runtimes = {**builtin, **files}
        if schema.BUILTIN_DEFAULT in files:
            runtimes[schema.BUILTIN_DEFAULT] = {**builtin[schema.BUILTIN_DEFAULT], **files[schema.BUILTIN_DEFAULT]}
    else:
        runtimes = dict(files) if "runtimes" in section else builtin  # an empty table, too, replaces the built-in one
        old_default = _table(section, "default_runtime")
        if old_default.get("runtime_type"):  # removed in 2.0; on 1.x it silently becomes the default
            runtimes["default"] = old_default
            default = "default"
        old_untrusted = _table(section, "untrusted_workload_runtime")
        if old_untrusted.get("runtime_type"):
            runtimes.setdefault("untrusted", old_untrusted)

    images = {
        key: value
        for key, value in schema.table(merged, "plugins", schema.CRI_IMAGES).items()
        if containerd.major >= 2 and not (key in _IMAGE_DEFAULTS and value == _IMAGE_DEFAULTS[key])
    }

    def result(state: Literal["ok", "disabled", "dead"], reason: str = "") -> CriSettings:
        return CriSettings(state, reason, plugin, str(default), runtimes, images)

    if disabled := _disabled_by(merged, plugin, containerd):
        return result("disabled", f'disabled_plugins names "{disabled}".')
    if default not in runtimes:
        return result("dead", f'default_runtime_name is "{default}", but no such runtime is defined.')
    for name, runtime in runtimes.items():
        for key in ("runtime_engine", "runtime_root"):
            if (
                not containerd.keeps_builtin_runc
                and runtime.get(key)
                and runtime.get("runtime_type") != schema.LINUX_V1
            ):
                return result("dead", f'{key} of runtime "{name}" works only for {schema.LINUX_V1}.')
    if reason := _dead_images(merged, settings if containerd.major == 1 else images_of(merged), containerd):
        return result("dead", reason)
    return result("ok")


def images_of(merged: dict[str, Any]) -> dict[str, Any]:
    """The table of the images' plugin (2.x)."""
    return schema.table(merged, "plugins", schema.CRI_IMAGES)


def _dead_images(merged: dict[str, Any], images: dict[str, Any], containerd: ContainerdVersion) -> str:
    """Why the images' side of the CRI would not load, "" where it does."""
    registry = schema.table(images, "registry")
    # 2.2.0 and 2.2.1 take a folder for granted, even beside mirrors (containerd issue 12612).
    folder = registry.get("config_path", "by default" if containerd.presumes_config_path else "")
    for key in ("mirrors", *(["configs.*.tls"] if containerd.major == 1 else [])):
        tables = schema.table(registry, "configs").values()
        is_set = registry.get("mirrors") if key == "mirrors" else any("tls" in t for t in tables if isinstance(t, dict))
        if folder and is_set:
            where = "which this release sets by itself" if "config_path" not in registry else f'"{folder}"'
            return f"registry.{key} cannot be set beside registry.config_path ({where})."
    section = schema.table(images, "containerd") if containerd.major == 1 else images
    snapshotter = section.get("snapshotter", _IMAGE_DEFAULTS["snapshotter"])
    if not snapshotter and containerd.major == 1:
        return ""  # unset means the default there
    if not _is_there(str(snapshotter), merged, containerd):
        return f'the default snapshotter is "{snapshotter}", but there is no such plugin (proxy_plugins names none).'
    return ""


def _is_there(snapshotter: str, merged: dict[str, Any], containerd: ContainerdVersion) -> bool:
    if "{" in snapshotter:
        return True  # a template's, which is filled in later
    if f"io.containerd.snapshotter.v1.{snapshotter}" in merged.get("disabled_plugins", ()):
        return False
    built_in = _SNAPSHOTTERS | (_SNAPSHOTTERS_OF_K3S if "k3s" in containerd.text else frozenset())
    return snapshotter in built_in or snapshotter in schema.table(merged, "proxy_plugins")


def tables_in_force(merged: dict[str, Any], containerd: ContainerdVersion) -> dict[str, Any]:
    """The plugin tables of `merge.merge`'s result that the CRI is built from: handlers, images, streaming."""
    plugins = schema.table(merged, "plugins")
    plugin = _plugin_in_force(merged, containerd)
    if containerd.major == 1:
        return {plugin: plugins[plugin]} if plugin in plugins else {}
    found = {name: plugins[name] for name in (plugin, schema.CRI_IMAGES) if name in plugins}
    server = {key: value for key, value in schema.table(plugins, schema.CRI_GRPC).items() if key in STAYS_IN_GRPC}
    return {**found, schema.CRI_GRPC: server} if server else found


def _plugin_in_force(merged: dict[str, Any], containerd: ContainerdVersion) -> str:
    if containerd.major == 1:
        return schema.CRI_GRPC if int(merged.get("version", 0)) >= 2 else schema.CRI
    return schema.CRI_RUNTIME


def _disabled_by(merged: dict[str, Any], plugin: str, containerd: ContainerdVersion) -> str | None:
    needed = [plugin] if containerd.major == 1 else [schema.CRI_GRPC, schema.CRI_RUNTIME, schema.CRI_IMAGES]
    return next((name for name in needed if name in merged.get("disabled_plugins", ())), None)


def _table(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key, {})
    if not isinstance(value, dict):
        raise RefusedError(
            f"containerd refuses the file: `{key}` is no table ({value!r}).", remedy=f"Correct `{key}` first."
        )
    return value
