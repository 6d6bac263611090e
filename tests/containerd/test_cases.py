"""Configurations of public reports, rebuilt small: what the model says the real daemon does, before us and with us.

`tests/unit/test_cases.py` lists every report and the tests that are about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flox_node.containerd.config import schema
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Effective, load
from flox_node.containerd.config.registration import Plain
from flox_node.errors import RefusedError
from flox_node.host import HostFiles
from tests.bed import releases
from tests.bed.containerd import Containerd
from tests.bed.machine import CONFIG
from tests.conftest import FULL
from tests.containerd.dumps import version

V2, V3, IMAGES = schema.CRI_GRPC, schema.CRI_RUNTIME, schema.CRI_IMAGES
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
NVIDIAS = "conf.d/99-nvidia.toml"


def runtime(plugin: str, name: str, kind: str = "io.containerd.runc.v2", more: str = "", **options: str) -> str:
    text = f'[plugins."{plugin}".containerd.runtimes.{name}]\n  runtime_type = "{kind}"\n{more}'
    if options:
        text += f'[plugins."{plugin}".containerd.runtimes.{name}.options]\n'
    return text + "".join(f"  {key} = {value}\n" for key, value in options.items())


def nvidia(number: int, plugin: str) -> str:
    default = f'version = {number}\n[plugins."{plugin}".containerd]\n  default_runtime_name = "nvidia"\n'
    binary = '"/usr/local/nvidia/toolkit/nvidia-container-runtime"'
    return default + runtime(plugin, "nvidia", BinaryName=binary, SystemdCgroup="true")


RUNC2, RUNC3 = (runtime(plugin, "runc", SystemdCgroup="true") for plugin in (V2, V3))
MIRRORS = f'[plugins."{V2}".registry.mirrors."docker.io"]\n  endpoint = ["https://mirror.example"]\n'


@dataclass(frozen=True)
class Case:
    """The files below /etc/containerd, what an install that is refused says, and the findings that it has."""

    files: dict[str, str]
    refused: str = ""
    findings: frozenset[str] = field(default_factory=frozenset)
    release: str = "2.1"
    """The one that `make test` tries."""


CASES = {
    "01-aks-drop-in-of-schema-4": Case(
        {"config.toml": f"version = 2\n{IMPORTS}{RUNC3}", NVIDIAS: nvidia(4, V3)}, r"99-nvidia\.toml.*version = 4"
    ),
    "03-root-of-schema-2-drop-in-of-3": Case(
        {"config.toml": f"version = 2\n{IMPORTS}{RUNC2}", NVIDIAS: nvidia(3, V3)}, "version = 3"
    ),
    "04-mirrors-of-schema-2": Case({"config.toml": f"version = 2\n{RUNC2}{MIRRORS}"}),
    "06-versionless-table-of-schema-2": Case({"config.toml": runtime(V2, "wasm", "io.containerd.wasmtime.v1")}),
    "09-kind-without-imports": Case(
        {
            "config.toml": f'version = 2\n[plugins."{V2}".containerd]\n  snapshotter = "overlayfs"\n'
            + runtime(V2, "runc", more='  base_runtime_spec = "/etc/containerd/cri-base.json"\n')
            + '[proxy_plugins."fuse-overlayfs"]\n  type = "snapshot"\n  address = "/run/fuse-overlayfs.sock"\n',
            "cri-base.json": '{"ociVersion": "1.1.0"}',
            "conf.d/kata-deploy.toml": runtime(V3, "kata-qemu", "io.containerd.kata-qemu.v2"),
        },
        findings=frozenset({"not-imported"}),
    ),
    "16-gvisors-documentation": Case(
        {
            "config.toml": 'version = 2\n[plugins."io.containerd.runtime.v1.linux"]\n  shim_debug = true\n'
            + runtime(V2, "runc")
            + runtime(V2, "runsc", "io.containerd.runsc.v1")
        }
    ),
    "17-cri-disabled": Case(
        {"config.toml": f'version = 2\ndisabled_plugins = ["{V2}"]\n{IMPORTS}'}, "disabled_plugins names", release="1.7"
    ),
    "17b-cri-halves-disabled": Case(
        {"config.toml": f'version = 3\ndisabled_plugins = ["{IMAGES}", "{V3}"]\n'}, "disabled_plugins|version = 3"
    ),
    "19-both-schemas-in-one-file": Case(
        {
            "config.toml": '[plugins.cri]\n  sandbox_image = "registry.k8s.io/pause:3.9"\n'
            + nvidia(0, V2).removeprefix("version = 0\n")
        },
    ),
    "20-an-import-that-is-not-there": Case(
        {"config.toml": f'imports = ["/etc/containerd/runtime_*.toml", "./debug.toml"]\nversion = 2\n{RUNC2}'},
        r"debug\.toml, which does not exist",
    ),
    "22-k3s-with-drop-ins": Case(
        {
            "config.toml": f"version = 3\n{IMPORTS}"
            f'[plugins."{V2}"]\n  stream_server_address = "127.0.0.1"\n  stream_server_port = "10010"\n'
            f'[plugins."{V3}"]\n  enable_unprivileged_ports = true\n{RUNC3}'
            + runtime(V3, "runhcs-wcow-process", "io.containerd.runhcs.v1")
            + runtime(V3, "'crun'"),
            "conf.d/90-nri.toml": '[plugins."io.containerd.nri.v1.nri"]\n  disable = false\n'
            f'[plugins."{V3}".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n',
            NVIDIAS: "version = 3\n" + runtime(V3, "'nvidia'", BinaryName='"/usr/bin/nvidia-container-runtime"'),
        },
        "version = 3",
    ),
    "23-a-snapshotter-that-is-not-there-yet": Case(
        {
            "config.toml": f'version = 2\n[plugins."{V2}".containerd]\n  snapshotter = "nydus"\n{RUNC2}'
            '[proxy_plugins.nydus]\n  type = "snapshot"\n  address = "/run/nydus.sock"\n'
        }
    ),
    "27-mirrors-beside-a-folder-of-hosts": Case(
        {"config.toml": f'version = 2\n{RUNC2}[plugins."{V2}".registry]\n  config_path = "/certs"\n{MIRRORS}'},
        "mirrors",
    ),
}


def cases() -> list[Any]:
    return [
        pytest.param(release, case, id=f"{release}-{name}")
        for name, case in CASES.items()
        for release in ((*releases.DEFAULT, *releases.NEWER) if FULL else (case.release,))
    ]


def starts(daemon: Containerd) -> bool:
    """Whether a kubelet gets an answer."""
    try:
        return daemon.start().has_cri()
    except RuntimeError:
        return False


def others(daemon: Containerd) -> dict[str, Any]:
    return {name: table for name, table in daemon.cri.handlers().items() if name != "flox"}


def write(daemon: Containerd, edits: tuple[Edit, ...]) -> None:
    daemon.cut_power()
    for edit in edits:
        path = daemon.folder / "disk" / edit.path.lstrip("/")
        path.unlink() if edit.after is None else path.write_bytes(edit.after)


def files(disk: Path) -> dict[str, bytes]:
    folder = disk / "etc/containerd"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("release", "case"), cases())
def test_a_reported_configuration_is_judged_as_the_daemon_does_and_nobody_loses_anything(
    containerd: Callable[..., Containerd], release: str, case: Case
) -> None:
    daemon = containerd(release, config="")
    for path, text in case.files.items():
        daemon.write(f"/etc/containerd/{path}", text)
    disk, registration = daemon.folder / "disk", Plain(f"/{CONFIG}")
    reader, before = HostFiles(disk), files(disk)

    def effective() -> Effective:
        return load(f"/{CONFIG}", reader, version(release))

    assert (effective().state == "ok") == starts(daemon), effective().findings
    if effective().state != "ok":
        assert case.refused, effective().findings
        with pytest.raises(RefusedError, match=case.refused):
            registration.edits(reader, version(release), Handler(), adopt=False)
        return
    assert case.findings <= {finding.code for finding in effective().findings}
    alone = others(daemon)
    write(daemon, registration.edits(reader, version(release), Handler(), adopt=False))
    assert starts(daemon)
    assert daemon.cri.handlers()["flox"]["options"]["BinaryName"] == Handler().binary_name
    assert others(daemon) == alone
    write(daemon, registration.withdrawals(reader, version(release), Handler()))
    assert files(disk) == before
