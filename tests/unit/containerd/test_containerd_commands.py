"""`flox-node containerd patch|explain` as they are called."""

import json
from pathlib import Path

import pytest

from tests.unit.command import Done
from tests.unit.command import call as command

SOURCE = b"# kept\r\nversion = 2\r\n"


def call(*words: str | Path, input: bytes = b"") -> Done:
    return command("containerd", *words, input=input)


def test_patch_prints_the_file_and_writes_nothing_and_remove_prints_the_original(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(SOURCE)
    patched = call("patch", file, "--containerd-version", "2.1.4").stdout_bytes
    assert patched.startswith(SOURCE)
    assert b"/opt/flox-node/bin/flox-runtime" in patched
    assert file.read_bytes() == SOURCE
    file.write_bytes(patched)
    assert call("patch", file, "--containerd-version", "2.1.4").stdout_bytes == patched
    assert call("patch", file, "--containerd-version", "2.1.4", "--remove").stdout_bytes == SOURCE


def test_patch_reads_the_standard_input_and_tells_machines_what_it_did() -> None:
    result = call(
        "patch", "-", "--containerd-version", "1.7.24", "--binary-name", "/x/y", "--json", input=b"version = 2\n"
    )
    told = json.loads(result.stdout)
    assert told["changed"]
    assert told["added_runc"]
    assert told["plugin_id"] == "io.containerd.grpc.v1.cri"
    assert 'BinaryName = "/x/y"' in told["result"]


def test_patch_needs_a_version_and_a_file(tmp_path: Path) -> None:
    assert call("patch", tmp_path / "x").exit_code == 2
    assert call("patch", tmp_path / "x", "--containerd-version", "2.1.4").exit_code == 2
    assert call("patch", tmp_path / "x", "--containerd-version", "new").exit_code == 2


def test_patch_refuses_a_missing_import_on_1x_and_warns_of_it_on_2x(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('version = 2\nimports = ["absent.toml"]\n')
    assert call("patch", file, "--containerd-version", "1.7.24").exit_code == 3
    result = call("patch", file, "--containerd-version", "2.1.4")
    assert result.exit_code == 0
    assert "absent.toml, which does not exist" in result.stderr


@pytest.fixture
def node(tmp_path: Path) -> Path:
    conf_d = tmp_path / "etc/containerd/conf.d"
    conf_d.mkdir(parents=True)
    (conf_d.parent / "config.toml").write_text('version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    table = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
    (conf_d / "99-nvidia.toml").write_text(
        f'version = 2\n[{table}.runc]\nruntime_type = "io.containerd.runc.v2"\n'
        f'[{table}.nvidia]\nruntime_type = "io.containerd.runc.v2"\noptions = {{ BinaryName = "/usr/bin/nv[x]" }}\n'
    )
    return tmp_path


def test_explain_shows_files_handlers_settings_findings_and_our_place(node: Path) -> None:
    shown = call("explain", "--host-root", node, "--containerd-version", "1.7.24").stdout
    for text in (
        "containerd 1.7.24: the CRI plugin loads",
        "/etc/containerd/conf.d/99-nvidia.toml",
        "runc (default)",
        "BinaryName=/usr/bin/nv[x]",
        "Our table belongs in /etc/containerd/conf.d/99-nvidia.toml (in-place)",
        "Our table belongs in /etc/containerd/config.toml (in-place)",
        "together with a table for runc",
    ):
        assert text in shown


def test_explain_tells_machines_the_same(node: Path) -> None:
    told = json.loads(call("explain", "--host-root", node, "--containerd-version", "2.2.7", "--json").stdout)
    assert told["state"] == "ok"
    assert [file["path"] for file in told["files"]] == [
        "/etc/containerd/config.toml",
        "/etc/containerd/conf.d/99-nvidia.toml",
    ]
    nvidia = next(entry for entry in told["handlers"] if entry["name"] == "nvidia")
    assert nvidia["set_by"] == ["/etc/containerd/conf.d/99-nvidia.toml"]
    (edit,) = told["placement"]["edits"]
    assert edit["path"] == "/etc/containerd/conf.d/50-flox-node.toml"
    assert not edit["there_already"]


def test_explain_says_why_containerd_would_not_start(node: Path) -> None:
    (node / "etc/containerd/conf.d/10-v3.toml").write_text("version = 3\n")
    told = json.loads(call("explain", "--host-root", node, "--containerd-version", "2.3.4", "--json").stdout)
    assert told["state"] == "refused"
    assert "declares version = 3" in told["summary"]
    assert told["placement"]["refused"]
