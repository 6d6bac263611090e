"""A registered node among others who edit, restart and downgrade: nothing of theirs is hurt, all of ours can go."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bed import flox, releases
from tests.bed.box import NodeBox
from tests.bed.config import node_config
from tests.bed.platforms import PlatformBox
from tests.conftest import FULL

CONFIG = "etc/containerd/config.toml"
DROP_IN = "etc/containerd/conf.d/50-flox-node.toml"
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
GRPC = "io.containerd.grpc.v1.cri"
KATA = f'\n[plugins."{GRPC}".containerd.runtimes.kata]\n  runtime_type = "io.containerd.kata.v2"\n'
MIRRORS = (
    f'\n[plugins."{GRPC}".registry]\n  config_path = "/etc/containerd/certs.d"\n'
    f'[plugins."{GRPC}".registry.mirrors."docker.io"]\n  endpoint = ["https://mirror.example"]\n'
)
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")


def _text(box: NodeBox, path: str = CONFIG) -> str:
    return (box.root / path).read_text()


def _status(box: NodeBox) -> Any:
    return json.loads(flox.flox_node(box, "status", "--json", check=False).stdout)


def _starts(box: NodeBox) -> str:
    return box.run("systemctl show -P ExecMainStartTimestampMonotonic containerd").stdout


def _refused(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert done.returncode == 3, done.stdout + done.stderr
    for text in texts:
        assert text in done.stderr


def _become(box: NodeBox, release: str) -> None:
    """Another release of containerd, as a package manager puts it there."""
    for program in PROGRAMS:
        new = box.root / f"usr/bin/{program}.new"
        shutil.copy(releases.program(release, program), new)
        new.rename(box.root / f"usr/bin/{program}")
    box.run("systemctl restart containerd; sleep 1", check=False)


def _toggle_cgroups(box: NodeBox) -> None:
    old = _text(box)
    here = old.index("SystemdCgroup = ") + len("SystemdCgroup = ")
    was, will = ("false", "true") if old[here:].startswith("false") else ("true", "false")
    box.write(CONFIG, old[:here] + will + old[here + len(was) :])
    box.run("systemctl restart containerd")


NODES = {
    "2.1 with a folder of drop-ins": ("2.1", IMPORTS + node_config()),
    **({release: (release, node_config()) for release in ("1.7", "2.1", "2.4")} if FULL else {}),
}


@pytest.fixture(params=NODES)
def box(request: pytest.FixtureRequest) -> Iterator[NodeBox]:
    release, config = NODES[request.param]
    with NodeBox(release, config=config) as box:
        yield box


def test_a_life_among_others_ends_with_the_node_as_it_would_be_without_us(box: NodeBox) -> None:
    flox.install(box)

    for _ in range(2):  # a tool changes what our table inherits
        _toggle_cgroups(box)
        assert _status(box)["drift"]
        flox.install(box)
        assert not _status(box)["drift"]

    # A handler is added and nobody restarts; then it is taken out, and nobody restarts.
    before, started = _text(box), _starts(box)
    box.write(CONFIG, before + KATA)
    _refused(flox.flox_node(box, "uninstall", check=False), CONFIG, 'the handler "kata" is not served yet')
    assert _starts(box) == started
    box.run("systemctl restart containerd")
    box.write(CONFIG, before)
    _refused(flox.flox_node(box, "uninstall", check=False), 'the handler "kata", which containerd serves')
    doctor = json.loads(flox.flox_node(box, "doctor", "--json", check=False).stdout)
    pending = next(each for each in doctor["checks"] if each["id"] == "pending-changes")
    assert 'the handler "kata"' in pending["cause"]
    box.run("systemctl restart containerd")

    without_us = node_config()
    flox.flox_node(box, "uninstall")
    assert _text(box).removeprefix(IMPORTS) == without_us
    assert not (box.root / DROP_IN).exists()
    assert "flox" not in box.cri.handlers()


@pytest.mark.parametrize("release", ("1.7", "2.1", "2.4") if FULL else ("2.1",))
def test_a_node_that_a_restart_would_kill_is_not_restarted(release: str) -> None:
    with NodeBox(release) as box:
        armed = _text(box) + MIRRORS
        box.write(CONFIG, armed)
        started = _starts(box)
        for words in (("plan", *flox.installation()[1:3]), flox.installation()):
            _refused(flox.flox_node(box, *words, check=False), "mirrors")
        assert _starts(box) == started
        assert _text(box) == armed
        assert box.cri.version()
        box.write(CONFIG, node_config() + KATA)
        _refused(flox.install(box, check=False), CONFIG, "kata", "systemctl restart containerd")
        box.run("systemctl restart containerd")
        flox.install(box)


@pytest.mark.parametrize("platform", ("k3s", "rke2") if FULL else ("k3s",))
def test_a_template_that_would_not_render_is_not_made_live(platform: str) -> None:
    with PlatformBox(platform, "2.1") as box:
        folder = box.outfit.config.rsplit("/", 1)[0]
        table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  cgroup_writable = true\n"
        box.write(f"{folder}/config-v3.toml.tmpl", '{{ template "base" . }}\n' + table)
        for words in (("plan", *flox.installation()[1:3]), flox.installation()):
            _refused(flox.flox_node(box, *words, check=False), "config-v3.toml.tmpl")
        assert box.cri.version()


def test_a_snippet_that_k0s_would_not_start_with_is_not_made_live() -> None:
    """https://github.com/k0sproject/k0s/issues/7689"""
    snippet = "etc/k0s/containerd.d/nvidia.toml"
    with PlatformBox("k0s", "2.1") as box:
        box.write(snippet, f"version = 2\n{KATA}")
        for words in (("plan", *flox.installation()[1:3]), flox.installation()):
            _refused(flox.flox_node(box, *words, check=False), f"/{snippet}", "refuse to start")
        assert box.cri.version()
        (box.root / snippet).unlink()
        flox.install(box)
        box.write(snippet, f"version = 2\n{KATA}")
        _refused(flox.flox_node(box, "uninstall", check=False), f"/{snippet}")
        assert "flox" in box.cri.handlers()
        (box.root / snippet).unlink()
        flox.flox_node(box, "uninstall", "--purge")
        assert "flox" not in box.cri.handlers()


@pytest.mark.parametrize("cure", ("boot", "install", "uninstall") if FULL else ("boot",))
def test_a_downgraded_containerd_that_our_drop_in_keeps_down_is_healed(cure: str) -> None:
    with NodeBox("2.1", config=IMPORTS + node_config()) as box:
        flox.install(box)
        _become(box, "1.7")
        told = _status(box)
        assert not told["handler_live"]
        if cure == "boot":
            box.reboot()
            box.run("systemctl start --wait flox-node-boot.service", check=False, timeout=200)
        elif cure == "install":
            flox.install(box)
        if cure != "uninstall":
            told = _status(box)
            assert told["handler_live"], box.run("journalctl -u flox-node-boot --no-pager", check=False).stdout
            assert not told["drift"]
        flox.flox_node(box, "uninstall")
        assert box.cri.version()
        assert _text(box) == IMPORTS + node_config()
        assert not (box.root / DROP_IN).exists()
        assert box.run("systemctl is-active containerd kubelet").stdout.split() == ["active", "active"]
