"""Real daemons started with patched files, and asked over the CRI."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from flox_node.containerd.config.editor import Handler, register
from flox_node.containerd.config.effective import Effective, MapReader, load
from flox_node.containerd.live import pending
from flox_node.containerd.live.cri import CriClient
from flox_node.errors import RefusedError
from flox_node.host import HostFiles
from tests.bed import releases
from tests.bed.containerd import Containerd
from tests.bed.machine import CONFIG, SOCKET
from tests.conftest import FULL
from tests.containerd.dumps import EXAMPLES, RELEASES, version
from tests.containerd.test_merge_model import configurations, write
from tests.unit.containerd.corpus import files

# Where the daemon listens and stores is the test's; everything else is the file's.
START = """
for c in /sys/fs/cgroup/*; do ! mountpoint -q "$c" || mount -o remount,bind,rw "$c"; done
exec containerd --address /run/containerd/containerd.sock --root /var/lib/containerd --state /run/containerd
"""
SAMPLE = ("039-aks-ctr2-gpu", "078-registry-only", "s07-kind-crlf", "s15-dotted-root")


@pytest.fixture
def started(
    containerd: Callable[..., Containerd], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, bytes, Effective], Containerd]:
    """A factory: the release's daemon with this file as its configuration, and every file that the file names."""
    monkeypatch.setattr("tests.bed.containerd.DAEMON", START)
    daemons: dict[str, Containerd] = {}

    def start(release: str, source: bytes, effective: Effective) -> Containerd:
        if release not in daemons:
            daemons[release] = containerd(release)
        daemon = daemons[release]
        daemon.cut_power()
        (daemon.folder / "disk" / CONFIG).write_bytes(source)
        assert effective.cri is not None
        for table in effective.cri.runtimes.values():
            if spec := table.get("base_runtime_spec"):
                daemon.write(spec, '{"ociVersion": "1.0.2"}')
        return daemon.start()

    return start


def alive(
    start: Callable[[str, bytes, Effective], Containerd], release: str, source: bytes, effective: Effective
) -> Containerd | None:
    """The daemon with this file, None where it does not start or has no CRI."""
    try:
        daemon = start(release, source, effective)
    except RuntimeError:
        return None
    return daemon if daemon.has_cri() else None


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", RELEASES if FULL else releases.DEFAULT)
def test_a_daemon_started_with_a_patched_file_serves_flox_and_every_other_handler(
    release: str, started: Callable[[str, bytes, Effective], Containerd]
) -> None:
    wrong, live = [], 0
    for path in files():
        if not FULL and not path.name.startswith(SAMPLE):
            continue
        source = path.read_bytes()
        before = load("/c.toml", MapReader({"/c.toml": source}), version(release))
        try:
            patch = register(source, Handler(), version(release), adopt=True)
        except RefusedError:
            continue
        if before.state != "ok":
            continue  # an import that is missing, or a foreign handler whose adoption makes the file whole
        assert before.cri is not None
        daemon = alive(started, release, patch.result, before)
        if daemon is None:
            # The file names what is not here (a snapshotter's proxy, a log format of nobody): not because of us.
            if alive(started, release, source, before):
                wrong.append(f"{path.name}: the CRI is gone with the patch")
            continue
        live += 1
        status = CriClient(daemon.root / SOCKET).status()
        expected = {*before.cri.runtimes, "flox"}
        if set(status.handlers) != expected or status.default_handler != before.cri.default_runtime:
            wrong.append(f"{path.name}: {set(status.handlers)}, default {status.default_handler}; expected {expected}")
        elif status.handlers["flox"].binary_name != "/opt/flox-node/bin/flox-runtime":
            wrong.append(f"{path.name}: {status.handlers['flox']}")
        # What a daemon was just started with is nothing that waits for a restart.
        after = load("/c.toml", MapReader({"/c.toml": patch.result}), version(release))
        wrong += [f"{path.name}: {each}" for each in pending.differences(after, status, "flox", "/c.toml")]
    print(f"\ncontainerd {release}: {live} patched files live")
    assert live >= len(SAMPLE) - 1
    assert wrong == []


REFUSED = {
    "an import that does not exist": 'version = 2\nimports = ["/etc/containerd/absent.toml"]\n',
    "a version from the future": "version = 5\n",
    "a table that is there twice": "[grpc]\nuid = 0\n[grpc]\nuid = 0\n",
}


@pytest.mark.parametrize("release", releases.DEFAULT)
@pytest.mark.parametrize("what", REFUSED)
def test_what_the_model_calls_refused_does_not_start(
    containerd: Callable[..., Containerd], release: str, what: str
) -> None:
    text = REFUSED[what]
    assert load("/c.toml", MapReader({"/c.toml": text.encode()}), version(release)).state == "refused"
    with pytest.raises(RuntimeError, match="does not start"):
        containerd(release, config=text).start()


DEAD = {
    "a default that is not defined": '[plugins."{id}".containerd]\ndefault_runtime_name = "absent"\n',
    "no default at all": '[plugins."{id}".containerd]\ndefault_runtime_name = ""\n',
}


@pytest.mark.parametrize("release", releases.DEFAULT)
@pytest.mark.parametrize("what", DEAD)
def test_what_the_model_calls_dead_starts_without_a_cri(
    containerd: Callable[..., Containerd], release: str, what: str
) -> None:
    text = "version = 2\n" + DEAD[what].format(id="io.containerd.grpc.v1.cri")
    assert load("/c.toml", MapReader({"/c.toml": text.encode()}), version(release)).state == "dead"
    assert not containerd(release, config=text).start().has_cri()


def test_an_empty_runtimes_table_kills_the_cri_of_1_7_and_the_model_knows(
    containerd: Callable[..., Containerd],
) -> None:
    text = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes]\n'
    assert load("/c.toml", MapReader({"/c.toml": text.encode()}), version("1.7")).state == "dead"
    assert not containerd("1.7", config=text).start().has_cri()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", RELEASES if FULL else releases.DEFAULT)
def test_the_model_says_what_a_daemon_does_that_is_started_with_generated_files(
    release: str, containerd: Callable[..., Containerd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.bed.containerd.DAEMON", START)
    machine = containerd(release)
    machine.write("/spec/a.json", '{"ociVersion": "1.0.2"}')
    folder = machine.folder / "disk/etc/containerd"

    @settings(
        max_examples=max(EXAMPLES // 5, 8),
        phases=[Phase.generate],  # every example costs a start: no shrinking
        deadline=None,
        database=None,
        derandomize=not FULL,
        suppress_health_check=list(HealthCheck),
    )
    @given(configurations())
    def agrees(files: dict[str, dict[str, Any]]) -> None:
        machine.cut_power()
        shutil.rmtree(folder)
        write(folder, files)
        effective = load(f"/{CONFIG}", HostFiles(machine.folder / "disk"), version(release))
        try:
            machine.start()
            found = "ok" if machine.has_cri() else "dead or disabled"
        except RuntimeError:
            found = "refused"
        model = effective.state if effective.state in ("ok", "refused") else "dead or disabled"
        assert found == model, f"{effective.refused or effective.cri}\n{machine.logs()[-1500:]}"
        if found == "ok":
            assert effective.cri is not None
            status = CriClient(machine.root / SOCKET).status()
            assert set(status.handlers) == set(effective.cri.runtimes)
            assert status.default_handler == effective.cri.default_runtime

    agrees()
