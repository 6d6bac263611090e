"""What `flox-node eks nodeconfig` prints, merged by nodeadm into what EKS' images have, under real containerds."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from flox_node.containerd.config import schema
from tests.bed.containerd import Containerd
from tests.bed.platforms import NEIGHBOURS, dress
from tests.conftest import FULL
from tests.unit.ami.examples import GROUP, printed

KUBERNETES = {"1.7": "1.29", "2.1": "1.33", "2.4": "1.35"}
CASES = [(release, neighbour) for release in KUBERNETES for neighbour in NEIGHBOURS]
SHIM = "/opt/flox-node/bin/flox-runtime"
SOURCES = ("--config-source", "imds://user-data", "--config-source", "file:///etc/eks/nodeadm.d/")


@pytest.mark.parametrize(("release", "neighbour"), CASES if FULL else CASES[::4])
def test_a_printed_nodeconfig_adds_the_handler_and_keeps_every_setting_of_eks_and_of_others(
    release: str, neighbour: str, containerd: Callable[..., Containerd]
) -> None:
    daemon = containerd(release, config="")
    dress(daemon, "eks-al2023", neighbour)
    before = _configured(daemon)

    text = printed("nodeconfig", *GROUP, "--kubernetes", KUBERNETES[release])
    if neighbour == "kata" and release > "2":  # theirs is under the old id, as the file's own comment has it
        text = text.replace(schema.CRI_RUNTIME, schema.CRI_GRPC)
    daemon.write("etc/eks/nodeadm.d/60-printed.yaml", text)
    after = _configured(daemon)

    (ours,) = [runtimes.pop("flox") for runtimes in _runtimes(after) if "flox" in runtimes]
    assert after == before
    (runc,) = [runtimes["runc"] for runtimes in _runtimes(before) if "runc" in runtimes]
    assert ours["base_runtime_spec"] == runc["base_runtime_spec"] == "/etc/containerd/base-runtime-spec.json"
    # containerd asks a handler's program what it can do.
    daemon.write(SHIM, '#!/bin/sh\nexec runc "$@"\n')
    daemon.run(["chmod", "755", SHIM])
    daemon.start()
    handlers = daemon.cri.handlers()
    assert handlers.keys() == {"runc", "flox", *({"nvidia", "kata-qemu"} & {neighbour, f"{neighbour}-qemu"})}
    assert handlers["flox"]["options"] == {"BinaryName": SHIM, "SystemdCgroup": True}


def _configured(daemon: Containerd) -> dict[str, Any]:
    """What containerd makes of what nodeadm writes at a boot."""
    daemon.run(["nodeadm", "init", *SOURCES])
    done = daemon.config_dump()
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


def _runtimes(dump: dict[str, Any]) -> list[dict[str, Any]]:
    plugins = schema.table(dump, "plugins")
    return [schema.table(plugins, plugin, "containerd", "runtimes") for plugin in plugins]
