"""The stand-alone daemon is a real containerd of the release and configuration that a test asks for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import releases
from tests.bed.containerd import Containerd
from tests.conftest import FULL

EVERY_RELEASE = ("1.6", *releases.DEFAULT, *(releases.NEWER if FULL else ()))


@pytest.mark.parametrize("release", EVERY_RELEASE)
def test_a_daemon_of_each_release_starts_and_runs_a_pod(containerd: Callable[..., Containerd], release: str) -> None:
    daemon = containerd(release).start()
    daemon.load_images()

    container = daemon.cri.run_container(daemon.cri.run_sandbox("runc"), ["echo", "hello"])

    assert daemon.cri.version().startswith(release)
    assert daemon.cri.wait_exited(container).exit_code == 0
    assert daemon.cri.logs(container) == "hello\n"


def test_a_stopped_daemon_starts_again_with_what_was_written_meanwhile(
    containerd: Callable[..., Containerd], release: str
) -> None:
    daemon = containerd(release).start()
    assert set(daemon.cri.handlers()) == {"runc"}
    daemon.stop()

    path = daemon.folder / "disk/etc/containerd/config.toml"
    table = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]\nruntime_type = "io.containerd.runc.v2"\n'
    daemon.write("/etc/containerd/config.toml", path.read_text() + table)
    daemon.start()

    assert set(daemon.cri.handlers()) == {"other", "runc"}


def test_an_invalid_configuration_is_told_with_the_daemons_own_words(
    containerd: Callable[..., Containerd], release: str
) -> None:
    daemon = containerd(release, config="version = 2\nversion = [\n")

    with pytest.raises(RuntimeError, match=r"containerd does not start(?s:.)*TOML"):
        daemon.start()


def test_a_daemon_without_its_cri_plugin_says_so(containerd: Callable[..., Containerd], release: str) -> None:
    daemon = containerd(release, config='version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')

    assert not daemon.start().has_cri()


def test_a_configuration_is_dumped_with_its_imports_whether_the_daemon_runs_or_not(
    containerd: Callable[..., Containerd], release: str
) -> None:
    daemon = containerd(release, config='version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    daemon.write("/etc/containerd/conf.d/root.toml", 'version = 2\nroot = "/var/lib/containerd/moved"\n')

    off = daemon.config_dump()
    on = daemon.start().config_dump()

    assert off.returncode == on.returncode == 0
    # 1.7 prints the imports in any order.
    assert _without_imports(off.stdout) == _without_imports(on.stdout)
    assert "/var/lib/containerd/moved" in off.stdout
    assert Path(daemon.folder / "containerd/moved").is_dir()


def _without_imports(dump: str) -> list[str]:
    return [line for line in dump.splitlines() if not line.startswith("imports")]
