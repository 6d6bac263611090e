"""Over a real containerd: a refusal that only the pod's author can cure ends the first container, and heals."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.bed import releases
from tests.bed.cri import CriError
from tests.bed.environment import BUSYBOX, script
from tests.bed.flox_daemon import FloxDaemon


@pytest.fixture(scope="module")
def daemon(bed: object) -> Iterator[FloxDaemon]:
    """A daemon with the payload's busybox on its node."""
    with FloxDaemon(releases.DEFAULT[0]) as started:
        started.load_images()
        link = started.root / "opt/flox-node/current/bin/busybox"
        link.parent.mkdir(parents=True)
        link.symlink_to(f"{BUSYBOX}/bin/busybox")
        yield started


def test_the_first_container_fails_at_its_start_with_the_text_and_the_next_one_heals(daemon: FloxDaemon) -> None:
    answer = {
        "schema_version": 1,
        "ok": False,
        "code": "access-denied",
        "final": True,
        "message": "environment demo/hello: no",
    }
    program = daemon.root / "opt/flox-node/bin/flox-node-realise"
    script(program, f"#!/bin/sh\ncat >/dev/null\necho '{json.dumps(answer)}'\n")
    pod = daemon.pod(skip_containers="init")
    for name in ("init", "main"):
        container = daemon.cri.create_container(pod, ["hello"], name=name)
        with pytest.raises(CriError, match=r"flox: environment demo/hello: no \(code access-denied\)"):
            daemon.cri.start(container)
        assert daemon.cri.container_status(container).reason == "StartError"
    daemon.resolve()
    daemon.cri.remove(container)
    container = daemon.cri.run_container(pod, ["hello", "healed"], name="main")
    daemon.cri.wait_exited(container)
    assert "healed" in daemon.cri.logs(container)
    daemon.cri.remove_sandbox(pod)
    assert not [path for path in daemon.state() if "refusals" in path or "pods" in path]
