"""A node that somebody changes behind our back: it is told, with whose doing it looks like, and repaired."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.bed import flox, payload
from tests.bed.box import NodeBox

CONFIG = "/etc/containerd/config.toml"
NVIDIA = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
    BinaryName = "/usr/bin/nvidia-container-runtime"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[NodeBox]:
    """One Flox node for all of this file: each test leaves it repaired."""
    with NodeBox("1.7") as box:
        flox.install(box)
        yield box


def _status(box: NodeBox) -> Any:
    done = flox.flox_node(box, "status", "--json", check=False)
    told = json.loads(done.stdout)
    assert done.returncode == (7 if told["drift"] or not told["handler_live"] else 0)
    return told


def _rewrite(box: NodeBox) -> None:
    text = (box.root / CONFIG.lstrip("/")).read_text()
    without_ours = re.sub(r"# flox-node: begin.*?# flox-node: end[^\n]*\n", "", text, flags=re.DOTALL)
    assert without_ours != text
    box.write(CONFIG, without_ours + NVIDIA)
    box.run("systemctl restart containerd")  # as the toolkit does


def _former_bytes(box: NodeBox) -> None:
    receipt = json.loads((box.root / "var/lib/flox-node/receipt.json").read_text())
    files = next(record["before"]["files"] for record in receipt["records"] if record["before"].get("files"))
    (box.root / CONFIG.lstrip("/")).write_bytes(base64.b64decode(files[CONFIG]["bytes"]))


@pytest.mark.parametrize(
    ("change", "reason", "suspect"),
    [
        (_former_bytes, "does not register the handler flox", "whoever keeps the former"),
        (_rewrite, "does not register the handler flox", "NVIDIA's container toolkit"),
        ("echo x >> /opt/flox-node/current/bin/flox-runtime", "bin/flox-runtime is not what was placed", ""),
        ("ln -sfn payloads/other /opt/flox-node/current", "current does not point to", ""),
        ("rm /opt/flox-node/bin/flox-runtime", "flox-runtime does not point to", "somebody removed"),
        ("rm /nix/var/nix/gcroots/flox-node/payload-*/flox", "garbage collection roots", ""),
        ("rm /etc/flox-node/policy.json", "policy.json is not there", "somebody removed"),
        ("rm /etc/systemd/system/flox-node-boot.service", "flox-node-boot.service", ""),
    ],
)
def test_a_change_is_told_and_repaired_by_the_next_install(
    node: NodeBox, change: str | Callable[[NodeBox], None], reason: str, suspect: str
) -> None:
    assert not _status(node)["drift"]
    if isinstance(change, str):
        node.run(change)
    else:
        change(node)
    drift = _status(node)["drift"][0]
    assert reason in drift["reason"]
    assert suspect in drift["suspect"]
    flox.install(node)
    told = _status(node)
    assert told["drift"] == []
    assert told["handler_live"]


def test_a_handler_that_is_not_live_any_more_is_told_and_registered_again(node: NodeBox) -> None:
    _former_bytes(node)
    node.run("systemctl restart containerd")
    node.cri.wait_ready()
    assert not _status(node)["handler_live"]
    flox.install(node)
    assert _status(node)["handler_live"]


def test_a_flipped_bit_is_found_by_doctor_deep_alone_and_put_right_by_a_repair(node: NodeBox) -> None:
    victim = node.run("find /nix/store/*-busybox*/bin -type f -size +1k | head -n 1").stdout.strip()
    assert victim
    node.run(f"cp -p {victim} /tmp/v && printf X | dd of={victim} conv=notrunc bs=1 seek=999 status=none")
    node.run(f"touch -r /tmp/v {victim}")
    assert not _status(node)["drift"]
    assert flox.flox_node(node, "doctor", check=False).returncode == 0
    deep = flox.flox_node(node, "doctor", "--deep", "--json", check=False)
    found = {check["id"]: check for check in json.loads(deep.stdout)["checks"]}
    assert deep.returncode == 7
    assert victim.rpartition("/bin/")[0] in found["payload-content"]["cause"]
    assert "--repair" in found["payload-content"]["remedy"]
    flox.flox_node(node, "install", "--payload", payload.folder(), "--repair")
    assert flox.flox_node(node, "doctor", "--deep", check=False).returncode == 0
    assert (node.root / victim.lstrip("/")).read_bytes() == (node.root / "tmp/v").read_bytes()
