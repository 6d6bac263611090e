"""What a platform will make of its own inputs at its next start, and how that is held against what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import MapReader, load
from flox_node.containerd.config.registration import K0s, Rancher, Registration, Relocated, Template
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live import pending
from flox_node.containerd.live.cri import CriStatus, RuntimeHandler
from flox_node.containerd.live.daemon import Daemon, Running
from flox_node.errors import RefusedError
from flox_node.host import Host, HostFiles

V2, V3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
FLOX = Handler()
K3S = "/var/lib/rancher/k3s/agent/etc/containerd"
MICROK8S = "/var/snap/microk8s/current/args"
BASE = '{{ template "base" . }}\n'
STARTED = 1000.0
LATER, EARLIER = 2000.0, 500.0


def rendered(plugin: str) -> str:
    version = 3 if plugin == V3 else 2
    return (
        f'version = {version}\n[plugins."{plugin}".containerd]\n  default_runtime_name = "runc"\n'
        f'[plugins."{plugin}".containerd.runtimes.runc]\n  runtime_type = "io.containerd.runc.v2"\n'
    )


def table(plugin: str, name: str) -> str:
    return f'\n[plugins."{plugin}".containerd.runtimes.{name}]\n  runtime_type = "io.containerd.runc.v2"\n'


class Clock:
    """The node's processes: containerd was started at STARTED."""

    def started_at(self, _: int) -> float:
        return STARTED


class Files(HostFiles):
    """A node's files whose inodes were changed when a test says so: the kernel lets nobody set that time."""

    def __init__(self, root: Path, files: dict[str, str], changed: tuple[str, ...]) -> None:
        super().__init__(root)
        for path, text in files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self._changed = changed

    def changed_at(self, path: str) -> float | None:
        there = super().changed_at(path)
        return None if there is None else LATER if path in self._changed else EARLIER


def found(
    root: Path, registration: Registration, files: dict[str, str], changed: tuple[str, ...], release: str = "2.1.9"
) -> str:
    host = Host(Files(root, files, changed), Clock(), None)  # type: ignore[arg-type]
    handlers = {"runc": RuntimeHandler("runc", "io.containerd.runc.v2", {}, None)}
    status = CriStatus(release, handlers, "runc", {})
    daemon = Daemon("/run/x.sock", 7, "/usr/bin/containerd", registration.config, "x.service", ())
    return "; ".join(map(str, pending.find(host, Running(daemon, status), registration, FLOX)))


TEMPLATE = f"{K3S}/config-v3.toml.tmpl"
CONFIG = f"{K3S}/config.toml"


@pytest.mark.parametrize(
    ("template", "changed", "says"),
    [
        (None, True, ""),
        (BASE, True, ""),
        (BASE + table(V3, "kata"), False, f'{CONFIG}, line 6: the handler "kata" is not served yet'),
        (BASE + table(V3, "kata"), True, 'the handler "kata" is not served yet'),
        (
            BASE + table(V3, "runc") + "  cgroup_writable = true\n",
            True,
            f"{TEMPLATE}: containerd would not start with it as it is now",
        ),
        (
            "{{ if .NodeConfig }}x{{ end }}" + BASE,
            True,
            f"{TEMPLATE}: it was changed since containerd was started, and",
        ),
        ("{{ if .NodeConfig }}x{{ end }}" + BASE, False, ""),
    ],
)
def test_a_template_of_rancher_is_rendered_as_its_start_would(
    tmp_path: Path, template: str | None, changed: bool, says: str
) -> None:
    files = {CONFIG: rendered(V3), **({} if template is None else {TEMPLATE: template})}
    told = found(tmp_path, Rancher(CONFIG), files, (TEMPLATE,) if changed else ())
    if not changed and says:
        says = ""  # as old as what runs: it was rendered then, whatever it looks like now
    assert told == says if not says else says in told


def test_what_was_rendered_of_the_template_already_is_not_rendered_twice(tmp_path: Path) -> None:
    files = {CONFIG: rendered(V3), TEMPLATE: BASE + table(V3, "runc").replace("runc]", "kata]")}
    files[CONFIG] += table(V3, "kata")
    coming = Rancher(CONFIG).next_start(
        MapReader({path: text.encode() for path, text in files.items()}), ContainerdVersion.parse("2.1.9"), FLOX
    )
    assert coming.files[CONFIG] == files[CONFIG].encode()
    assert coming.inputs[0] == TEMPLATE


@pytest.mark.parametrize("name", ["config.yaml", "config.yaml.d/50-mine.yaml"])
def test_changed_settings_of_the_service_cannot_be_told(tmp_path: Path, name: str) -> None:
    settings = f"/etc/rancher/k3s/{name}"
    changed = settings.removesuffix("/50-mine.yaml")
    files = {CONFIG: rendered(V3), settings: "default-runtime: nvidia\n"}
    assert found(tmp_path, Rancher(CONFIG), files, ()) == ""
    assert f"{changed}: it was changed since containerd was started" in found(
        tmp_path, Rancher(CONFIG), files, (changed,)
    )


def test_our_own_block_in_a_template_is_no_edit_of_others(tmp_path: Path) -> None:
    reader = MapReader({CONFIG: rendered(V3).encode(), TEMPLATE: BASE.encode()})
    version = ContainerdVersion.parse("2.1.9")
    (edit,) = Rancher(CONFIG).edits(reader, version, FLOX, adopt=False)
    assert edit.after is not None
    files = {CONFIG: rendered(V3), TEMPLATE: edit.after.decode()}
    assert found(tmp_path, Rancher(CONFIG), files, (TEMPLATE,)) == ""


def test_a_template_of_microk8s_is_filled_in_as_at_the_last_start(tmp_path: Path) -> None:
    registration = Template(f"{MICROK8S}/containerd.toml", f"{MICROK8S}/containerd-template.toml")
    template = rendered(V2).replace('"runc"\n', '"${RUNTIME}"\n', 1)
    files = {registration.config: rendered(V2), registration.template: template}
    assert found(tmp_path, registration, files, (registration.template,), "1.7.24") == ""
    files[registration.template] += table(V2, "nvidia")
    told = found(tmp_path, registration, files, (registration.template,), "1.7.24")
    assert 'the handler "nvidia" is not served yet' in told
    assert found(tmp_path, registration, files, (), "1.7.24") == ""


def test_a_new_file_that_k0s_merges_itself_cannot_be_told(tmp_path: Path) -> None:
    registration = K0s("/etc/k0s/containerd.toml", "/etc/k0s/containerd.d")
    snippet = "/etc/k0s/containerd.d/10-kata.toml"
    files = {registration.config: rendered(V2), snippet: "version = 2\n" + table(V2, "kata")}
    assert f"{snippet}: it was changed since" in found(tmp_path, registration, files, (snippet,), "1.7.24")
    assert found(tmp_path, registration, files, (), "1.7.24") == ""


@pytest.mark.parametrize(
    ("schema", "changed", "refused"), [(2, True, True), (0, True, True), (2, False, False), (3, True, False)]
)
def test_a_new_file_of_another_schema_beside_k0s_own_is_told(
    tmp_path: Path, schema: int, changed: bool, refused: bool
) -> None:
    config, folder = "/etc/k0s/containerd.toml", "/etc/k0s/containerd.d"
    snippet = f"{folder}/nvidia.toml"
    imports = f'imports = ["{folder}/*.toml"]\n'
    files = {
        config: imports + rendered(V3),
        snippet: (f"version = {schema}\n" if schema else "") + (table(V2, "nvidia") if schema < 3 else ""),
    }
    told = found(tmp_path, K0s(config, folder), files, (snippet,) if changed else ())
    assert (f"{snippet}: it was changed since containerd was started, and its schema" in told) is refused


def test_a_refusal_says_what_to_do() -> None:
    error = pending.refusal((pending.Pending("/etc/x", 3, "it is new"),), "x.service")
    assert isinstance(error, RefusedError)
    assert "/etc/x, line 3: it is new" in error.cause
    assert "systemctl restart x.service" in error.remedy


def test_a_configuration_that_is_dead_is_told_whatever_its_age(tmp_path: Path) -> None:
    from flox_node.containerd.config.registration import Plain

    text = rendered(V2).replace('default_runtime_name = "runc"', 'default_runtime_name = "gone"')
    assert load("/c", MapReader({"/c": text.encode()}), ContainerdVersion.parse("1.7.24")).state == "dead"
    told = found(tmp_path, Plain("/etc/containerd/config.toml"), {"/etc/containerd/config.toml": text}, (), "1.7.24")
    assert "containerd would not start with it as it is now" in told


def test_without_our_copy_it_is_the_vendor_s_file_that_containerd_starts_with(tmp_path: Path) -> None:
    vendor, copy = "/usr/share/containerd/config.toml", "/etc/containerd/config.toml"
    unit = "/etc/systemd/system/containerd.service.d/90-flox-node.conf"
    # runc as the vendor has it is not what containerd has built in.
    text = f'{rendered(V2)}  [plugins."{V2}".containerd.runtimes.runc.options]\n    BinaryName = "/usr/bin/crun"\n'
    registration = Relocated(copy, vendor, unit)
    before = MapReader({vendor: text.encode()})
    edits = registration.edits(before, ContainerdVersion.parse("1.7.24"), FLOX, adopt=False)
    files = {vendor: text, **{edit.path: (edit.after or b"").decode() for edit in edits}}

    host = Host(Files(tmp_path, files, (copy, unit)), Clock(), None)  # type: ignore[arg-type]
    options = {"BinaryName": "/usr/bin/crun"}
    status = CriStatus("1.7.24", {"runc": RuntimeHandler("runc", "io.containerd.runc.v2", options, None)}, "runc", {})
    running = Running(Daemon("/run/x.sock", 7, "/usr/bin/containerd", copy, "x.service", ()), status)
    assert pending.find(host, running, registration, FLOX) == ()
