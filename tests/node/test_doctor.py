"""The doctor on real nodes, a support bundle with secrets all around it, the store on a disk of its own, and labels."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import flox, payload
from tests.bed.box import NodeBox
from tests.bed.config import node_config
from tests.node.tree import tree

CONFIG = "/etc/containerd/config.toml"
OTHER = """\
version = 3
root = "/run/other"
state = "/run/other-state"
[grpc]
  address = "/run/other/containerd.sock"
"""
SECRETS = {
    "a personal token": "flox_pat_Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5",
    "a JWT": "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJzdWIiOiJwb2QifQ.c2lnbmF0dXJlLW9mLWl0",
    "a password of a registry": "hunter2-is-short",
    "a short password": "x7Qz!",
    "an auth of a registry": "dXNlcjpodW50ZXIyLWlzLXNob3J0",
    "a header": "Basic Z2VoZWltOmdlaGVpbQ==",
    "a value of an environment variable": "swordfish-in-the-environment",
    "a password in a URL": "openSesame99",
}


def _checks(box: NodeBox, *arguments: str) -> dict[str, Any]:
    done = flox.flox_node(box, "doctor", "--json", *arguments, check=False)
    checks = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == (7 if any(check["state"] == "problem" for check in checks.values()) else 0)
    return checks


@pytest.fixture(scope="module")
def node() -> Iterator[NodeBox]:
    """One Flox node for all of this file; each test leaves it as it found it."""
    with NodeBox("2.1") as box:
        flox.install(box)
        yield box


def test_a_node_that_is_well_has_no_finding_and_is_left_as_it_was(node: NodeBox) -> None:
    before = tree(node)
    checks = _checks(node, "--deep")
    assert {name: check for name, check in checks.items() if check["state"] in ("problem", "warning")} == {}
    assert {name for name, check in checks.items() if check["state"] == "skipped"} <= {"recent-failures"}
    assert tree(node) == before


@pytest.mark.parametrize(
    ("change", "undo", "check", "state", "says"),
    [
        ("systemctl stop kubelet", "systemctl start kubelet", "kubelet-running", "problem", "no kubelet"),
        ("systemctl stop containerd", "systemctl start kubelet", "containerd-running", "problem", "No process"),
        (
            "mount --bind /opt /opt && mount -o remount,bind,ro /opt",
            "umount /opt",
            "targets-writable",
            "problem",
            "/opt: Read-only file system",
        ),
        (
            "mount --bind /opt /opt && mount -o remount,bind,noexec /opt",
            "umount /opt",
            "targets-executable",
            "problem",
            "/opt: Permission denied",
        ),
        (
            "mount -t tmpfs -o size=8m,nr_inodes=50 none /nix",
            "umount /nix",
            "disk-space",
            "problem",
            "/nix: 8 MiB free",
        ),
        ("mount -t tmpfs -o size=8m,nr_inodes=50 none /nix", "umount /nix", "inodes", "problem", "/nix: "),
        (
            "mkdir -p /etc/nix && echo x > /etc/nix/nix.conf",
            "rm -r /etc/nix",
            "foreign-nix",
            "warning",
            "/etc/nix/nix.conf",
        ),
        (
            "echo KUBELET_EXTRA_ARGS=--node-labels=flox-runtime=enabled > /etc/default/kubelet",
            "rm /etc/default/kubelet",
            "labels",
            "warning",
            "flox-runtime=enabled",
        ),
        (
            "mkdir -p /var/lib/kubelet && echo 'cgroupDriver: systemd' > /var/lib/kubelet/config.yaml",
            "rm /var/lib/kubelet/config.yaml",
            "cgroup-driver",
            "problem",
            "the kubelet uses systemd",
        ),
        (
            "mv /usr/sbin/runc /usr/sbin/runc.away",
            "mv /usr/sbin/runc.away /usr/sbin/runc",
            "inner-runtime",
            "problem",
            "/usr/sbin/runc is not there",
        ),
        (
            "touch /usr/local/bin/containerd-shim-flox-v2",
            "rm /usr/local/bin/containerd-shim-flox-v2",
            "foreign-handler",
            "warning",
            "containerd-shim-flox-v2",
        ),
        (
            f"printf '{OTHER}' > /run/other.toml; systemd-run --quiet --unit=other containerd --config /run/other.toml",
            "systemctl stop other; rm -r /run/other*",
            "nri-socket",
            "problem",
            "/run/other.toml) listen on /run/nri/nri.sock",
        ),
        ("mv /nix /nix.away; ln -s nix.away /nix", "rm /nix; mv /nix.away /nix", "nix-folder", "problem", "nix.away"),
        (
            "mv /run/dbus/system_bus_socket /run/dbus/away",
            "mv /run/dbus/away /run/dbus/system_bus_socket",
            "system-bus",
            "problem",
            "does not answer",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_node_is_found_with_its_remedy(
    node: NodeBox, change: str, undo: str, check: str, state: str, says: str
) -> None:
    node.run("mkdir -p /usr/local/bin /etc/default")
    node.run(change)
    try:
        found = _checks(node)[check]
        assert (found["state"], says in found["cause"]) == (state, True), found
        assert found["remedy"]
    finally:
        node.run(undo)
        node.cri.wait_ready()
    assert _checks(node)[check]["state"] in ("ok", "skipped")


def test_a_shim_that_did_not_answer_when_containerd_started_is_told(node: NodeBox) -> None:
    shim = node.run("readlink -f /opt/flox-node/bin/flox-runtime").stdout.strip()
    node.run(f"mv {shim} {shim}.away && printf '#!/bin/sh\\nexit 1\\n' > {shim} && chmod 755 {shim}")
    try:
        node.run("systemctl restart containerd")
        node.cri.wait_ready()
        checks = _checks(node)
        assert checks["handler-features"]["state"] == "problem"
        assert checks["drift"]["state"] == "problem"
        assert "flox-runtime is not what was placed" in checks["drift"]["cause"]
    finally:
        node.run(f"mv {shim}.away {shim}")
        node.run("systemctl restart containerd")
        node.cri.wait_ready()


def test_an_import_that_leads_nowhere_is_told_as_the_reason_why_containerd_does_not_start(
    node_box: Callable[..., NodeBox],
) -> None:
    box = node_box("2.1")
    text = (box.root / CONFIG.lstrip("/")).read_text()
    version, rest = text.split("\n", 1)
    box.write(CONFIG, f'{version}\nimports = ["/etc/containerd/gone.toml"]\n{rest}')
    box.run("systemctl restart containerd", check=False)
    checks = _checks(box)
    assert checks["containerd-running"]["state"] == "problem"
    assert checks["configuration"]["state"] == "problem"
    assert "/etc/containerd/gone.toml, which does not exist" in checks["configuration"]["cause"]


def test_what_pods_ask_for_wrongly_is_told(node: NodeBox) -> None:
    sandbox = node.cri.run_sandbox("runc", name="plain", annotations={"flox.dev/environment": "demo/hello"})
    wrong = flox.run_flox_sandbox(node, "demo/hello@2", name="wrong")
    try:
        checks = _checks(node)
        assert "default/plain: has flox.dev/environment but not runtimeClassName flox" in checks["annotations"]["cause"]
        assert "default/wrong" in checks["recent-failures"]["cause"]
        assert "demo/hello:2" in checks["recent-failures"]["cause"]
    finally:
        node.cri.remove_sandbox(wrong)
        node.cri.remove_sandbox(sandbox)


def test_a_sandbox_whose_pod_died_with_the_old_containerd_is_told(node: NodeBox) -> None:
    sandbox = node.cri.run_sandbox("runc", name="stuck")
    try:
        task = node.root / "run/containerd/io.containerd.runtime.v2.task/k8s.io" / sandbox.id
        pid = (task / "init.pid").read_text()
        node.run(f"systemctl stop containerd; kill -9 {pid}; sleep 1; systemctl start containerd kubelet")
        node.cri.wait_ready()
        found = _checks(node)["stuck-sandboxes"]
        assert found["state"] == "problem"
        assert "default/stuck" in found["cause"]
    finally:
        node.cri.remove_sandbox(sandbox)


def test_a_bundle_holds_none_of_the_secrets_of_its_node(node_box: Callable[..., NodeBox], tmp_path: Path) -> None:
    secret = SECRETS
    registry = f"""
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example.com".auth]
  username = "deploy"
  password = "{secret["a password of a registry"]}"
  auth = "{secret["an auth of a registry"]}"
[plugins."io.containerd.grpc.v1.cri".registry.configs."s.example.com".auth]
  password = "{secret["a short password"]}"
[plugins."io.containerd.grpc.v1.cri".registry.headers]
  Authorization = ["{secret["a header"]}"]
# a comment: {secret["a password of a registry"]}
"""
    box = node_box("1.7", config=node_config() + registry)
    flox.install(box)
    token = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~secret/t/floxhub-token"
    box.write(token, secret["a JWT"] + "\n")
    box.write(f"{token}.other/floxhub-token", secret["a personal token"])
    said = [
        f"pulling with {secret['a personal token']}",
        f"token={secret['a JWT']}",
        f"env MY_SETTING={secret['a value of an environment variable']}",
        f"GET https://user:{secret['a password in a URL']}@cache.example.com/x",
        f'failed: {{"auth":"{secret["an auth of a registry"]}"}}',
        f"password: {secret['a short password']}",
    ]
    box.write(
        "/var/log/flox-node/runtime.jsonl",
        "".join(json.dumps({"level": "error", "message": text}) + "\n" for text in said),
    )
    for text in said:
        box.run(["systemd-run", "--wait", "--quiet", "--unit=flox-node-planted", "/bin/echo", text], check=False)
    box.write("/etc/systemd/system/flox-node-planted.service", "[Service]\nExecStart=/bin/true\n")
    box.run("journalctl --sync")
    bundle = tmp_path / "support.tar.gz"
    flox.flox_node(box, "collect", "-o", bundle)
    assert os.stat(bundle).st_mode & 0o777 == 0o600
    with tarfile.open(bundle) as archive:
        members = {member.name: archive.extractfile(member).read().decode() for member in archive}  # type: ignore[union-attr]
    content = "\n".join(members.values())
    for name, value in secret.items():
        for part in {value, value.removeprefix("Basic ")}:
            assert part not in content, f"{name} is in {[member for member, text in members.items() if part in text]}"
    names = {name.removeprefix("flox-node-support/") for name in members}
    assert {"receipt.json", "doctor.json", "configuration/explained.json", "mounts.txt", "versions.json"} <= names
    assert "units/containerd.service.txt" in names
    assert "Started containerd.service" in members["flox-node-support/units/containerd.service.txt"]
    assert "planted" in "".join(names)
    receipt = json.loads(members["flox-node-support/receipt.json"])
    assert receipt["payload_id"]
    again = flox.flox_node(box, "collect", "-o", bundle, check=False)
    assert again.returncode == 2, "no bundle is overwritten"


def test_a_store_on_a_disk_of_its_own_is_mounted_at_every_boot_and_purged_with_its_mount(
    node_box: Callable[..., NodeBox],
) -> None:
    box = node_box("2.1")
    refused = flox.flox_node(box, "install", "--payload", payload.folder(), "--nix-dir", "/data/nix", check=False)
    assert refused.returncode == 3
    assert "/data is not there" in refused.stderr
    box.run("mkdir /data")
    before = tree(box)
    flox.flox_node(box, "install", "--payload", payload.folder(), "--nix-dir", "/data/nix")
    assert box.run("findmnt --noheadings --output FSROOT /nix").stdout.strip().endswith("/data/nix")
    assert (box.root / "data/nix/store").is_dir()
    box.reboot()
    assert box.run("systemctl is-active nix.mount containerd kubelet").stdout.split() == ["active"] * 3
    assert (
        json.loads(flox.flox_node(box, "install", "--payload", payload.folder(), "--json").stdout)["changed"] is False
    )
    flox.flox_node(box, "uninstall")
    assert (box.root / "data/nix/store").is_dir(), "a plain uninstall keeps the store"
    flox.install(box)
    flox.flox_node(box, "uninstall", "--purge")
    assert tree(box) == before


def test_a_disk_of_the_store_that_is_gone_costs_neither_containerd_nor_the_kubelet(
    node_box: Callable[..., NodeBox],
) -> None:
    box = node_box("2.1")
    box.run("mkdir /data")
    flox.flox_node(box, "install", "--payload", payload.folder(), "--nix-dir", "/data/nix")
    box.run("systemctl stop nix.mount && mv /data/nix /data/away && touch /data/nix")
    box.reboot()
    active = box.run("systemctl is-active nix.mount containerd kubelet", check=False).stdout.split()
    assert active == ["failed", "active", "active"]
    checks = _checks(box)
    assert "nix.mount" in checks["units"]["cause"]
    assert checks["drift"]["state"] == "problem"


def test_a_symlinked_nix_is_refused_before_anything_is_written(node_box: Callable[..., NodeBox]) -> None:
    box = node_box("2.1")
    box.run("mkdir -p /data/nix && ln -s /data/nix /nix")
    before = tree(box)
    refused = flox.install(box, check=False)
    assert refused.returncode == 3
    assert "--nix-dir /data/nix" in refused.stderr
    assert tree(box) == before


def test_a_forced_uninstall_under_running_pods_keeps_the_shim_until_they_are_gone(
    node_box: Callable[..., NodeBox], tmp_path: Path
) -> None:
    box = node_box("1.7")
    before = tree(box)
    flox.install(box)
    flox.start_hub(box, tmp_path)
    pod = flox.run_flox_sandbox(box, "demo/hello", name="web")
    container = box.cri.run_container(pod, ["sleep", "3600"])
    pid = box.cri.container_pid(container)
    forced = flox.flox_node(box, "uninstall", "--purge", "--force")
    assert "Kept:" in forced.stdout
    assert "flox" not in box.cri.handlers()
    assert (box.root / "opt/flox-node/bin/flox-runtime").is_file()
    assert (box.root / "nix/store").is_dir(), "the container has a view mounted"
    assert box.cri.container_pid(container) == pid
    box.cri.remove_sandbox(pod)
    again = flox.flox_node(box, "uninstall", "--purge")
    assert "Kept:" not in again.stdout
    assert tree(box) == before


def test_where_selinux_is_on_what_is_created_carries_the_types_that_its_users_need(
    node_box: Callable[..., NodeBox],
) -> None:
    """These machines' kernels run without SELinux: the labels are shown as what is stored, their effect is not."""
    box = node_box("2.1")
    if not (box.root / "sys/fs/selinux").exists():  # nobody can make a folder in the kernel's /sys/fs
        box.run("mkdir /tmp/cgroup && mount --rbind /sys/fs/cgroup /tmp/cgroup && mount -t tmpfs none /sys/fs")
        box.run("mkdir /sys/fs/cgroup /sys/fs/selinux && mount --rbind /tmp/cgroup /sys/fs/cgroup")
        box.run("echo 0 > /sys/fs/selinux/enforce")
    flox.install(box)
    for path, kind in {
        "/nix": "usr_t",
        "/nix/store": "usr_t",
        "/opt/flox-node": "usr_t",
        "/opt/flox-node/current/bin/flox-runtime": "bin_t",
        "/etc/systemd/system/flox-node-boot.service": "systemd_unit_file_t",
        "/var/lib/flox-node": "var_lib_t",
    }.items():
        real = box.run(["readlink", "-f", path]).stdout.strip()
        label = os.getxattr(box.root / real.lstrip("/"), "security.selinux").decode()
        assert label == f"system_u:object_r:{kind}:s0\0", path
    assert _checks(box)["selinux"] | {"title": ""} == {
        "id": "selinux", "title": "", "state": "ok", "cause": "permissive", "remedy": ""
    }  # fmt: skip
    os.setxattr(box.root / "nix", "security.selinux", b"system_u:object_r:default_t:s0\0")
    assert "/nix has the type default_t instead of usr_t" in _checks(box)["selinux"]["cause"]
    flox.flox_node(box, "install", "--payload", payload.folder(), "--repair")
    assert _checks(box)["selinux"]["state"] == "ok"
