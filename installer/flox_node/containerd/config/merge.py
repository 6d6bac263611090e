"""How containerd makes one configuration of a root file and its imports: the rules of each release.

1.6, 1.7    a later file's `plugins."<id>"` replaces the earlier one whole
2.0 - 2.2   plugin tables merge key by key; the last declared `version` counts for all files, migration comes afterwards
2.3 -       every file is migrated first, then merged; 2.3.0 to 2.3.4 refuse a file that declares more than the root
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flox_node.containerd.config import schema
from flox_node.containerd.config.document import Document
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

Data = dict[str, Any]

_NVIDIAS_REMEDY = (
    "NVIDIA's container toolkit wrote it with the schema of `containerd config dump`: set RUNTIME_CONFIG_SOURCE=file "
    "for the toolkit, which then follows the root file, or its NRI mode (ENABLE_NRI_PLUGIN=true), which writes none."
)
_ACCUMULATED = ("imports", "disabled_plugins", "required_plugins")
_REPLACED_PER_KEY = ("proxy_plugins", "stream_processors", "timeouts")
_V1_NAMES = {
    "cri": schema.CRI_GRPC,
    "cgroups": "io.containerd.monitor.v1.cgroups",
    "linux": "io.containerd.runtime.v1.linux",
    "scheduler": "io.containerd.gc.v1.scheduler",
    "bolt": "io.containerd.metadata.v1.bolt",
    "task": "io.containerd.runtime.v2.task",
    "opt": "io.containerd.internal.v1.opt",
    "restart": "io.containerd.internal.v1.restart",
    "tracing": "io.containerd.internal.v1.tracing",
    "otlp": "io.containerd.tracing.processor.v1.otlp",
    **{
        name: f"io.containerd.snapshotter.v1.{name}"
        for name in ("aufs", "btrfs", "devmapper", "native", "overlayfs", "zfs")
    },
}
_MOVED_TO_IMAGES = frozenset(
    (
        "sandbox_image",
        "registry",
        "image_decryption",
        "max_concurrent_downloads",
        "image_pull_progress_timeout",
        "image_pull_with_sync_fs",
        "stats_collect_period",
    )
)
STAYS_IN_GRPC = frozenset(
    (
        "disable_tcp_service",
        "stream_server_address",
        "stream_server_port",
        "stream_idle_timeout",
        "enable_tls_streaming",
        "x509_key_pair_streaming",
    )
)
NEEDS_RUNTIMES = frozenset(("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"))


def merge(documents: Sequence[Document], containerd: ContainerdVersion, names: Sequence[str] = ()) -> Data:
    """One configuration, in the newest schema of this containerd, from files in load order (the root first).

    `plugins` holds what the files say, without built-in defaults. Raises RefusedError where the daemon would not start;
    it tells the file by its name in `names`.
    """
    schema.check_supported(containerd)
    if containerd.major == 1:
        return _merge_1(documents, containerd, names)
    return _merge_2(documents, containerd, names)


def _merge_1(documents: Sequence[Document], containerd: ContainerdVersion, names: Sequence[str]) -> Data:
    merged: Data = {}
    last_declared = 0
    for index, document in enumerate(documents):
        data = _copied(document.data)
        last_declared = index if data.get("version") else last_declared
        plugins = data.pop("plugins", {})
        _merge_top_level(merged, data, unique=False)
        merged.setdefault("plugins", {}).update(plugins)
    merged.setdefault("plugins", {})
    declared = int(merged.get("version", 0))
    _check_schema(documents, names, last_declared, declared, containerd)
    if declared >= 2:
        names = [*merged["plugins"], *merged.get("disabled_plugins", ()), *merged.get("required_plugins", ())]
        for name in names:
            if name.count(".") < 3 or (containerd.minor > 6 and not name.startswith("io.containerd.")):
                raise RefusedError(
                    f'containerd {containerd} refuses the plugin name "{name}" where version = {declared}.',
                    remedy="Write the full plugin id, e.g. io.containerd.grpc.v1.cri.",
                )
    return merged


def _copied(value: Any) -> Any:
    """As `copy.deepcopy`, for what is made of tables, lists and values that nobody changes: in a third of the time."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _check_schema(
    documents: Sequence[Document], names: Sequence[str], index: int, declared: int, containerd: ContainerdVersion
) -> None:
    """As `schema.check_schema`, with the name of the file that declares it, and who wrote it where that is known."""
    try:
        schema.check_schema(declared, containerd)
    except RefusedError as error:
        remedy = _NVIDIAS_REMEDY if _is_nvidias(documents[index]) and index else error.remedy
        raise RefusedError(f"{names[index]}: {error.cause}" if names else error.cause, remedy=remedy) from None


def _is_nvidias(document: Document) -> bool:
    """Whether NVIDIA's container toolkit wrote this drop-in: a handler of it starts the toolkit's runtime."""
    return any(
        "nvidia-container-runtime" in str(schema.table(runtime, "options").get("BinaryName"))
        for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME)
        for runtime in schema.table(document.data, "plugins", plugin, "containerd", "runtimes").values()
        if isinstance(runtime, dict)
    )


def _merge_2(documents: Sequence[Document], containerd: ContainerdVersion, names: Sequence[str]) -> Data:
    newest = containerd.newest_schema
    merged: Data = {"version": newest, "plugins": {}}
    root_version = last_declared = 0
    for index, document in enumerate(documents):
        data = _copied(document.data)
        declared = int(data.get("version", 0))
        root_version = root_version or declared
        last_declared = index if declared else last_declared
        if containerd.refuses_newer_dropin and declared > root_version:
            raise RefusedError(
                (f"{names[index]}: " if names else "")
                + f"containerd {containerd} does not start: an imported file declares version = {declared}, "
                f"the root file {root_version}.",
                remedy="Remove the `version` line of the imported file."
                + (f" {_NVIDIAS_REMEDY}" if _is_nvidias(document) else ""),
            )
        if containerd.migrates_each_file:
            _check_schema(documents, names, index, declared, containerd)
            _migrate(data, declared, newest)
        elif declared < 2:
            _check_schema(documents, names, last_declared, merged["version"], containerd)  # it panics migrating to it
            _rename_plugins(data)
            data["version"] = merged["version"]
        plugins = data.pop("plugins", {})
        _merge_top_level(merged, data, unique=True)
        _merge_deeply(merged["plugins"], plugins)
    for key in ("disabled_plugins", "required_plugins"):
        for name in merged.get(key, ()):
            if "." not in name:
                raise RefusedError(
                    f'containerd {containerd} refuses "{name}" in {key}.', remedy="Write the full plugin id there."
                )
    _check_schema(documents, names, last_declared, merged["version"], containerd)
    _migrate(merged, merged["version"], newest)
    return merged


def _merge_top_level(merged: Data, data: Data, *, unique: bool) -> None:
    """Everything but plugins: lists grow, empty values never win, some tables are replaced per key."""
    for key, value in data.items():
        if key in _ACCUMULATED:
            known = merged.setdefault(key, [])
            known.extend(item for item in value if not unique or item not in known)
        elif key in _REPLACED_PER_KEY and isinstance(value, dict):
            merged.setdefault(key, {}).update(value)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            _merge_top_level(merged[key], value, unique=unique)
        elif value or key not in merged:
            merged[key] = value


def _merge_deeply(merged: Data, data: Data) -> None:
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            _merge_deeply(merged[key], value)
        else:
            merged[key] = value


def _migrate(data: Data, declared: int, newest: int) -> None:
    """Bring plugin names and the CRI tables from schema `declared` to `newest`, step by step as the daemon does."""
    if declared >= newest:
        return
    if declared < 1:
        _split_cri(data)
    if declared < 2:
        _rename_plugins(data)
    _split_cri(data)
    data["version"] = newest


def _rename_plugins(data: Data) -> None:
    data["plugins"] = {_full_name(name): value for name, value in data.get("plugins", {}).items()}
    for key in ("disabled_plugins", "required_plugins"):
        if key in data:
            data[key] = [_full_name(name) for name in data[key]]


def _full_name(name: str) -> str:
    if "." in name:
        return name
    if name.endswith("-service"):
        return f"io.containerd.service.v1.{name}"
    return _V1_NAMES.get(name, f"io.containerd.grpc.v1.{name}")


def _split_cri(data: Data) -> None:
    """Hand the CRI table of schema 2 out to the three plugins of schema 3."""
    plugins = data.setdefault("plugins", {})
    source = plugins.get(schema.CRI_GRPC)
    if isinstance(source, dict):
        _fill_runtime(plugins.setdefault(schema.CRI_RUNTIME, {}), source)
        _fill_images(plugins.setdefault(schema.CRI_IMAGES, {}), source)
        plugins[schema.CRI_GRPC] = {key: value for key, value in source.items() if key in STAYS_IN_GRPC}


def _fill_runtime(target: Data, source: Data) -> None:
    """What is there already wins, but for cni.bin_dir; `runtimes` counts as one value."""
    for key, value in source.items():
        if key not in _MOVED_TO_IMAGES | STAYS_IN_GRPC | {"cni", "containerd"}:
            target.setdefault(key, value)
    if isinstance(cni := source.get("cni"), dict):
        new = target.setdefault("cni", {})
        for key, value in cni.items():
            if key == "bin_dir":
                new["bin_dirs"] = [value]
            else:
                new.setdefault(key, value)
    if isinstance(containerd := source.get("containerd"), dict):
        new = target.setdefault("containerd", {})
        for key, value in containerd.items():
            if key not in NEEDS_RUNTIMES:
                new.setdefault(key, value)


def _fill_images(target: Data, source: Data) -> None:
    """Here the old table wins. Its snapshotter settings move only where it defines a runtime (a fault of 2.x)."""
    if "sandbox_image" in source:
        target.setdefault("pinned_images", {})["sandbox"] = source["sandbox_image"]
    for key in _MOVED_TO_IMAGES - {"sandbox_image"}:
        if key in source:
            target[key] = source[key]
    section = schema.table(source, "containerd")
    if "runtimes" in section:
        target.update({key: section[key] for key in NEEDS_RUNTIMES if key in section})
