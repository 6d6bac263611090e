"""flox.dev/nix-mutable behind a real containerd, with the payload's Nix and the double of the Flox CLI."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.bed.flox_daemon import RUNC_1_3, FloxDaemon
from tests.conftest import FULL
from tests.containerd.test_shim_cri import ALL, HANDLERS


@pytest.fixture(
    scope="module", params=ALL if FULL else [("2.1", RUNC_1_3)], ids=lambda pair: f"{pair[0]}-{HANDLERS[pair[1]]}"
)
def daemon(request: pytest.FixtureRequest, bed: object) -> Iterator[FloxDaemon]:
    with FloxDaemon(*request.param).with_cli() as daemon:
        daemon.load_images()
        yield daemon


def test_packages_are_installed_in_a_running_container_and_end_with_it(daemon: FloxDaemon) -> None:
    container = daemon.cri.run_container(daemon.pod(nix_mutable="true"), ["sleep", "600"])
    before = daemon.run("ls /nix/store; ls -l /nix/var/nix/db").stdout

    def run(command: str) -> str:
        done = daemon.cri.exec(container, "sh", "-c", f"{{ {command}; }} 2>&1", timeout=60)
        assert done.exit_code == 0, done.stdout
        return done.stdout

    path = run(
        "mkdir -p new/bin; echo '#!/bin/sh' >new/bin/greet; chmod 755 new/bin/greet; nix-store --add new"
    ).strip()
    assert run(f"flox install -i greet {path}") == "✔ 'greet' installed to environment 'hello'\n"
    assert run("greet; flox list") == f"greet: {path}\n"
    assert run("flox uninstall greet") == "━ 'greet' uninstalled from environment 'hello'\n"
    assert daemon.run("ls /nix/store; ls -l /nix/var/nix/db").stdout == before, "the node's own store"
    (layer,) = (daemon.folder / "containerd").glob(f"io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs{path}")
    daemon.cri.remove_sandbox(daemon.cri.sandboxes()[0].id)
    until = time.monotonic() + 60
    while layer.exists():
        assert time.monotonic() < until, f"{layer} is still there"
        time.sleep(0.1)
