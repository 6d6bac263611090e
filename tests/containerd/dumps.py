"""What a real containerd makes of a configuration: its dump, and what of it the model has to get right."""

import dataclasses
import functools
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from flox_node.containerd.config import schema
from flox_node.containerd.config.effective import Effective
from flox_node.containerd.config.runtimes import tables_in_force
from flox_node.containerd.config.version import ContainerdVersion
from tests.bed import releases
from tests.conftest import FULL

RELEASES = ("1.6", *releases.DEFAULT, *(releases.NEWER if FULL else ()))
EXAMPLES = int(os.environ.get("FLOX_NODE_EXAMPLES") or (500 if FULL else 40))


@functools.cache
def version(release: str) -> ContainerdVersion:
    """The exact version of a release of the bed, from its binary."""
    done = subprocess.run(
        [releases.program(release, "containerd"), "--version"], capture_output=True, text=True, check=True
    )
    return ContainerdVersion.parse(done.stdout)


@dataclasses.dataclass(frozen=True)
class Dump:
    """`containerd config dump`: the CRI's handlers and settings, or the error."""

    error: str
    data: dict[str, Any]
    release: str

    @property
    def handlers(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "runtime_type": table.get("runtime_type") or "",
                "base_runtime_spec": table.get("base_runtime_spec") or "",
                "runtime_path": table.get("runtime_path") or "",
                "pod_annotations": table.get("pod_annotations") or [],
                # Options that are not set and options that are empty mean the same to the shim.
                "options": {key: value for key, value in (table.get("options") or {}).items() if value},
            }
            for name, table in (self._containerd.get("runtimes") or {}).items()
        }

    @property
    def default_runtime(self) -> str:
        return str(self._containerd.get("default_runtime_name", ""))

    @property
    def _containerd(self) -> dict[str, Any]:
        return schema.table(self.data, "plugins", self.plugin, "containerd")

    @property
    def plugin(self) -> str:
        """Where the dump shows the handlers: every containerd prints its newest schema."""
        return schema.CRI_GRPC if self.release.startswith("1.") else schema.CRI_RUNTIME

    @property
    def cri_is_dead(self) -> bool:
        """What the daemon's own check would say of the default runtime; the dump itself does not."""
        return self.default_runtime not in self.handlers

    def but(self, handler: str) -> dict[str, Any]:
        """Everything that the dump says, without one handler and without the paths of the loaded files."""
        data = {key: value for key, value in self.data.items() if key != "imports"}
        plugins = dict(data.get("plugins", {}))
        for plugin in (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME):
            runtimes = schema.table(plugins, plugin, "containerd", "runtimes")
            if handler in runtimes:
                section = plugins[plugin]["containerd"]
                rest = {name: table for name, table in runtimes.items() if name != handler}
                plugins[plugin] = {**plugins[plugin], "containerd": {**section, "runtimes": rest}}
        return {**data, "plugins": plugins}


def dump(release: str, path: Path) -> Dump:
    """Ask the release's own binary, on this machine, for the configuration whose root file is `path`."""
    done = subprocess.run(
        [releases.program(release, "containerd"), "--config", path, "config", "dump"],
        capture_output=True,
        check=False,
        timeout=60,
        cwd="/",  # as under systemd; old releases resolve relative patterns against it
    )
    if done.returncode:
        return Dump(done.stderr.decode(errors="replace").strip().splitlines()[-1], {}, release)
    return Dump("", tomllib.loads(done.stdout.decode()), release)


def dump_bytes(release: str, source: bytes) -> Dump:
    """The dump of one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(source)
        return dump(release, path)


@functools.cache
def defaults(release: str) -> Dump:
    """What the release does with an empty file."""
    return dump_bytes(release, b"")


def expected_handlers(effective: Effective) -> dict[str, dict[str, Any]]:
    """The model's handlers in the form of `Dump.handlers`."""
    assert effective.cri is not None
    return {
        name: {
            "runtime_type": table.get("runtime_type") or "",
            "base_runtime_spec": table.get("base_runtime_spec") or "",
            "runtime_path": table.get("runtime_path") or "",
            "pod_annotations": table.get("pod_annotations") or [],
            "options": {key: value for key, value in (table.get("options") or {}).items() if value},
        }
        for name, table in effective.cri.runtimes.items()
    }


def disagreements(effective: Effective, real: Dump, settings: tuple[tuple[str, ...], ...]) -> list[str]:
    """Where the model and the dump differ: handlers, default, the given CRI settings, the daemon's own values."""
    found = []

    def compare(what: str, model: object, truth: object) -> None:
        if model != truth:
            found.append(f"{what}: model {model!r}, containerd {truth!r}")

    assert effective.cri is not None
    compare("disabled", set(effective.merged.get("disabled_plugins", ())), set(real.data.get("disabled_plugins") or ()))
    if effective.cri.state == "disabled":
        return found  # the dump does not decode the tables of a plugin that is off
    compare("handlers", expected_handlers(effective), real.handlers)
    compare("default", effective.cri.default_runtime, real.default_runtime)
    model = tables_in_force(effective.merged, effective.containerd)
    if real.plugin not in model and schema.CRI in model:
        model = {**model, real.plugin: model[schema.CRI]}  # the dump shows a versionless file in schema 2
    basis = defaults(real.release).data["plugins"]
    for path in settings:
        truth = _leaf(real.data["plugins"], path)
        compare(".".join(path), _leaf(model, path, _leaf(basis, path)), truth)
    for key in ("root", "state", "oom_score"):
        compare(key, effective.merged.get(key) or defaults(real.release).data[key], real.data[key])
    return found


def _leaf(data: dict[str, Any], path: tuple[str, ...], default: object = None) -> object:
    return schema.table(data, *path[:-1]).get(path[-1], default)
