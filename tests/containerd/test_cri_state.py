"""What `explain` says of a configuration is what the real daemon does: whether its CRI loads, and no false warning."""

import subprocess
from collections.abc import Callable

import pytest

from flox_node.containerd.config import schema
from flox_node.containerd.config.effective import MapReader, load
from flox_node.host import HostFiles
from tests.bed import releases
from tests.bed.containerd import Containerd
from tests.bed.machine import CONFIG
from tests.conftest import FULL
from tests.containerd.dumps import version

RELEASES = ("1.6", *releases.DEFAULT, *(releases.NEWER if FULL else ()))
MIRROR = '[plugins."{cri}".registry.mirrors."docker.io"]\nendpoint = ["https://mirror.example"]\n'
FOLDER = '[plugins."{cri}".registry]\nconfig_path = "{path}"\n'
RUNC = '[plugins."{cri}".containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
SNAPSHOTTER = '[plugins."{cri}".containerd]\nsnapshotter = "{name}"\n'
SPEC = 'base_runtime_spec = "/etc/containerd/{name}.json"\n'
# A configuration of schema 2, and the majors of containerd whose CRI loads with it.
CONFIGURATIONS = {
    "mirrors alone": (MIRROR, (1, 2)),
    "mirrors beside a folder of hosts": (FOLDER.replace("{path}", "/certs") + MIRROR, ()),
    "mirrors beside an empty folder": (FOLDER.replace("{path}", "") + MIRROR, (1, 2)),
    "an empty table of mirrors beside a folder": (
        FOLDER.replace("{path}", "/certs") + '[plugins."{cri}".registry.mirrors]\n',
        (1, 2),
    ),
    "a base specification that is there": (RUNC + SPEC.replace("{name}", "there"), (1, 2)),
    "a base specification that is not there": (RUNC + SPEC.replace("{name}", "gone"), ()),
    "a base specification that is no JSON": (RUNC + SPEC.replace("{name}", "broken"), ()),
    "a handler's base specification that is not there": (
        RUNC + RUNC.replace("runtimes.runc", "runtimes.other") + SPEC.replace("{name}", "gone"),
        (),
    ),
    "a default snapshotter without its plugin": (SNAPSHOTTER.replace("{name}", "nydus") + RUNC, ()),
    "a default snapshotter with its plugin, which does not answer": (
        SNAPSHOTTER.replace("{name}", "nydus")
        + RUNC
        + '[proxy_plugins.nydus]\ntype = "snapshot"\naddress = "/run/nydus.sock"\n',
        (1, 2),
    ),
    "the default snapshotter switched off": (
        'disabled_plugins = ["io.containerd.snapshotter.v1.overlayfs"]\n' + RUNC,
        (),
    ),
    "no snapshotter": (SNAPSHOTTER.replace("{name}", "") + RUNC, (1,)),
    "a registry's certificate beside a folder of hosts": (
        FOLDER.replace("{path}", "/certs") + '[plugins."{cri}".registry.configs."r".tls]\nca_file = "/ca"\n',
        (2,),
    ),
    "another snapshotter of containerd's own": (SNAPSHOTTER.replace("{name}", "native") + RUNC, (1, 2)),
}


@pytest.mark.parametrize("release", RELEASES)
def test_the_model_knows_what_a_cri_does_not_load_with(release: str, containerd: Callable[..., Containerd]) -> None:
    daemon = containerd(release)
    daemon.write("/etc/containerd/there.json", '{"ociVersion": "1.0.2"}')
    daemon.write("/etc/containerd/broken.json", "{")
    wrong = []
    for name, (text, majors) in CONFIGURATIONS.items():
        daemon.cut_power()
        daemon.write(f"/{CONFIG}", "version = 2\n" + text.replace("{cri}", schema.CRI_GRPC))
        loads = version(release).major in majors
        effective = load(f"/{CONFIG}", HostFiles(daemon.folder / "disk"), version(release))
        model, real = effective.state == "ok", daemon.start().has_cri()
        if (model, real) != (loads, loads):
            wrong.append(f"{name}: model {effective.state}, daemon {'ok' if real else 'dead'}, the table {loads}")
    assert wrong == []


@pytest.mark.parametrize("release", RELEASES)
def test_there_is_nothing_to_say_about_a_stock_configuration(release: str) -> None:
    """`containerd config default` holds, among others, the streaming server's keys under the id of schema 2."""
    program = releases.program(release, "containerd")
    stock = subprocess.run([program, "config", "default"], capture_output=True, check=True).stdout
    effective = load("/c.toml", MapReader({"/c.toml": stock}), version(release))
    assert (effective.state, effective.findings) == ("ok", ())
