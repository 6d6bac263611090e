"""A platform is one module: a distribution that nobody knows, with a containerd of its own, is known everywhere."""

from __future__ import annotations

import io
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from flox_node import platforms
from flox_node.containerd.live import daemon
from flox_node.environments.paths import Paths
from flox_node.host import Host, RunningProcess
from flox_node.payload import Payload
from flox_node.plan import install, preview
from flox_node.plan.bundle import collect
from flox_node.plan.doctor import examine
from flox_node.plan.status import status
from flox_node.platforms.registry import all_platforms
from flox_node.settings import Settings
from tests.unit import fake_node
from tests.unit.fake_node import KUBEADM, FakeNode

MODULE = '''
"""Acme: a distribution whose agent holds the kubelet, with a containerd of its own."""

from flox_node.platforms.platform import Layer, Platform, Renderer, Sign, SignKind

PLATFORM = Platform(
    name="acme",
    title="Acme's Kubernetes",
    layer=Layer.DISTRIBUTION,
    signs=(Sign(SignKind.SOCKET, "/run/acme/containerd.sock"), Sign(SignKind.UNIT, "acme-agent.service")),
    durable="/etc/containerd/config.toml",
    rewritten="acme, at every start",
    renderer=Renderer("acme", "/etc/containerd/*", "at every start", (b"rendered by acme",)),
    socket="/run/acme/containerd.sock",
    units=("acme-agent.service",),
    state="/run/acme/containerd",
    logs=("/var/log/acme/containerd.log",),
    kubelets=("acmelet",),
    kubelet_root="/var/lib/acme/kubelet",
    kubelet_flags=("/etc/acme/kubelet.args",),
    restart_deadline_s=77.0,
)
'''
TOKEN = "of-no-known-form-7f3a"  # no pattern of a token: only where it lies tells what it is


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/acme.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.setattr(platforms, "__path__", [*platforms.__path__, str(tmp_path / "modules")])
    monkeypatch.setattr(fake_node, "SOCKET", "/run/acme/containerd.sock")
    monkeypatch.setattr(fake_node, "UNIT", "acme-agent.service")
    all_platforms.cache_clear()
    node = FakeNode(tmp_path / "node", config=KUBEADM)
    (node.root / "run/acme").mkdir()
    node.processes.others = [RunningProcess(77, "/usr/bin/acmelet", ("acmelet",), "acme-agent.service", ())]
    with node.containerd.serving():
        yield node
    all_platforms.cache_clear()


def test_a_distribution_of_one_module_is_known_everywhere(acme: FakeNode, payload: Payload) -> None:
    host, root, settings = acme.host, acme.root, Settings()
    assert daemon.cri_socket(host) == "/run/acme/containerd.sock"
    plan = preview(host, payload, settings).plan
    assert plan.detection.platform.name == "acme"
    assert vars(plan.actions[-1])["deadline_s"] == 77.0
    install(host, payload, settings, lambda _: None)
    assert status(host, settings).platform == "acme"

    # what it renders anew is its doing
    acme.config.write_text("# Rendered by acme, do not edit.\n" + KUBEADM)
    assert status(host, settings).drift[0].suspect.startswith("acme, which writes /etc/containerd/config.toml")

    # its pods, their tokens, its containers
    token = root / "var/lib/acme/kubelet/pods/uid/volumes/kubernetes.io~secret/flox/floxhub-token"
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    assert f"{root}/var/lib/acme/kubelet/pods/uid/volumes" in Paths(str(root)).pod_volumes("uid")
    log = root / "var/log/acme/containerd.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"level=error msg={TOKEN}\n")
    packed = _packed(host, settings)
    assert "units/acme-agent.service.txt" in packed
    assert "level=error" in packed["logs/var/log/acme/containerd.log"]
    assert not any(TOKEN in text for text in packed.values())

    # the doctor
    (root / "etc/acme").mkdir()
    (root / "etc/acme/kubelet.args").write_text("--node-labels=flox.dev/enable=true\n")
    causes = {result.id: result.cause for result in examine(host, settings)}
    assert "acmelet (pid 77)" in causes["kubelet-running"]
    assert "/etc/acme/kubelet.args: flox.dev/enable=true" in causes["labels"]


def _packed(host: Host, settings: Settings) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(collect(host, settings).archive)) as archive:
        files = [(entry.name, archive.extractfile(entry)) for entry in archive]
        return {name.removeprefix("flox-node-support/"): file.read().decode() for name, file in files if file}
