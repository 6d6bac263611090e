"""The node box is a node: systemd, containerd, pods, power cuts; and nothing of it outlives its owner."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bed import scope
from tests.bed.box import NodeBox
from tests.bed.config import node_config

KUBELET = ["/usr/bin/kubelet", "--container-runtime-endpoint=unix:///run/containerd/containerd.sock"]


def test_a_box_boots_to_a_working_node_without_failed_units(box: NodeBox) -> None:
    assert box.run("systemctl is-system-running").stdout == "running\n"
    assert box.cri.version().startswith(box.containerd)
    assert box.boot_seconds < 20  # measured 0.4 s; a busy machine takes longer


def test_a_pod_of_runc_runs_its_command_and_answers_exec(box: NodeBox) -> None:
    sandbox = box.cri.run_sandbox("runc", annotations={"flox.test/key": "value"})
    container = box.cri.run_container(sandbox, ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"], env={"A": "b"})

    answer = box.cri.exec(container, "sh", "-c", "echo $A; echo no >&2; exit 7")
    assert (answer.stdout, answer.stderr, answer.exit_code) == ("b\n", "no\n", 7)
    assert sorted(box.cri.logs(container).splitlines()) == ["err", "out"]
    assert box.run(["readlink", f"/proc/{box.cri.container_pid(container)}/exe"]).stdout == "/bin/busybox\n"

    box.cri.remove_sandbox(sandbox)
    assert box.cri.sandboxes() == []
    assert box.cri.containers() == []


def test_a_failed_command_of_a_pod_is_reported_with_its_exit_code(box: NodeBox) -> None:
    container = box.cri.run_container(box.cri.run_sandbox(), ["sh", "-c", "exit 3"])

    status = box.cri.wait_exited(container)

    assert status.exit_code == 3


def test_a_restart_of_containerd_keeps_the_pods_and_restarts_the_kubelet(box: NodeBox) -> None:
    container = box.cri.run_container(box.cri.run_sandbox("runc"), ["sleep", "1000"])
    pod, daemon, kubelet = box.cri.container_pid(container), box.main_pid("containerd"), box.main_pid("kubelet")

    box.run("systemctl restart containerd")
    box.cri.wait_ready()

    assert box.cri.container_pid(container) == pod
    assert box.cri.exec(container, "echo", "alive").stdout == "alive\n"
    assert box.main_pid("containerd") not in (0, daemon)
    assert box.main_pid("kubelet") not in (0, kubelet)


def test_the_kubelet_stand_in_names_the_cri_socket_in_its_arguments(box: NodeBox) -> None:
    process = Path(f"{box.root}/proc/{box.main_pid('kubelet')}")

    assert (process / "comm").read_text() == "kubelet\n"
    assert (process / "cmdline").read_text().rstrip("\0").split("\0") == KUBELET


def test_a_kubelet_whose_containerd_failed_stays_inactive_until_it_is_started(box: NodeBox) -> None:
    good = (box.root / "etc/containerd/config.toml").read_text()
    box.write("/etc/containerd/config.toml", "not = [toml")
    assert box.run("systemctl restart containerd", check=False).returncode != 0

    box.write("/etc/containerd/config.toml", good)
    box.run("systemctl reset-failed containerd && systemctl restart containerd")

    assert box.run("systemctl is-active kubelet", check=False).stdout == "inactive\n"
    box.run("systemctl start kubelet")


def test_a_power_cut_keeps_the_disk_and_loses_run_and_every_process(box: NodeBox) -> None:
    box.cri.run_container(box.cri.run_sandbox("runc"), ["sleep", "1000"])
    box.write("/run/this-boot", "")
    box.write("/nix/store/kept", "on disk")
    first = box.run("cat /proc/sys/kernel/random/boot_id /etc/machine-id").stdout

    box.reboot()

    assert box.run("systemctl is-system-running").stdout == "running\n"
    assert not (box.root / "run/this-boot").exists()
    assert (box.root / "nix/store/kept").read_text() == "on disk"
    assert "flox.test/busybox:1" in box.cri.images()
    assert box.cri.container_pid(box.cri.run_container(box.cri.run_sandbox("runc"), ["sleep", "1000"])) > 0
    assert box.run("cat /etc/machine-id").stdout in first


def test_a_node_can_be_shut_down_in_order(node_box: Callable[..., NodeBox]) -> None:
    box = node_box()
    witness = ["systemd-run", "--quiet", "--remain-after-exit", "--property=ExecStop=/bin/touch /var/stopped", "true"]
    box.run(witness)

    box.halt()

    assert (box.folder / "disk/var/stopped").exists()


def test_nix_can_be_renamed_and_hard_linked_as_on_a_plain_file_system(node_box: Callable[..., NodeBox]) -> None:
    box = node_box()

    box.run(
        "mkdir -p /nix/store/.staging/a /nix/var/flox-node/views/k/store && echo x > /nix/store/.staging/a/file"
        " && mv -T /nix/store/.staging/a /nix/store/a && ln /nix/store/a/file /nix/var/flox-node/views/k/store/file"
    )

    store, view = (box.root / path for path in ("nix/store/a/file", "nix/var/flox-node/views/k/store/file"))
    assert store.stat().st_nlink == 2
    assert os.path.samefile(store, view)
    box.reboot()
    assert (box.root / "nix/store/a/file").stat().st_nlink == 2


def test_systemd_can_keep_the_pods_cgroups(node_box: Callable[..., NodeBox], release: str) -> None:
    box = node_box(release, config=node_config(systemd_cgroup=True))

    sandbox = box.cri.run_sandbox("runc", cgroup_parent="/kubepods.slice")
    container = box.cri.run_container(sandbox, ["sleep", "1000"])

    cgroup = box.run(["cat", f"/proc/{box.cri.container_pid(container)}/cgroup"]).stdout
    assert f"/kubepods.slice/cri-containerd-{container}.scope" in cgroup


def test_containerd_2_takes_a_configuration_of_version_3(node_box: Callable[..., NodeBox]) -> None:
    box = node_box("2.1", config=node_config(schema=3))

    assert box.cri.exec(box.cri.run_container(box.cri.run_sandbox("runc"), ["sleep", "9"]), "true").exit_code == 0


def test_a_served_program_is_in_the_nodes_network_and_outlives_a_power_cut(
    node_box: Callable[..., NodeBox], tmp_path: Path
) -> None:
    box = node_box()
    (tmp_path / "hello").write_text("hello\n")
    server = box.serve([sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", tmp_path])
    fetch = "for i in $(seq 100); do busybox wget -qO- http://127.0.0.1:8000/hello && exit; sleep 0.1; done; exit 1"

    assert box.run(fetch).stdout == "hello\n"
    box.reboot()
    assert box.run(fetch).stdout == "hello\n"

    box.close()
    assert server.poll() is not None
    assert subprocess.run(["sh", "-c", fetch.replace("100", "1")], capture_output=True, check=False).returncode == 1


def test_a_killed_command_of_the_node_is_really_dead(node_box: Callable[..., NodeBox]) -> None:
    box = node_box()
    command = box.popen("echo $$ >/run/pid; exec sleep 1000")
    while not (pid := box.run("cat /run/pid 2>/dev/null", check=False).stdout.strip()):
        time.sleep(0.01)

    box.kill(command)

    assert not (box.root / "proc" / pid).exists()


def test_two_boxes_run_beside_each_other(node_box: Callable[..., NodeBox]) -> None:
    one, other = node_box("1.7"), node_box("2.1")
    container = one.cri.run_container(one.cri.run_sandbox("runc"), ["sleep", "1000"])

    other.close()

    assert one.cri.exec(container, "true").exit_code == 0
    assert one.cri.sandboxes()


def test_nothing_of_a_closed_box_is_left(node_box: Callable[..., NodeBox]) -> None:
    box = node_box()
    box.cri.run_container(box.cri.run_sandbox("runc"), ["sleep", "1000"])
    folder = box.folder

    box.close()

    assert _traces(folder) == []


def test_what_a_killed_owner_left_is_swept(bed: Path) -> None:
    script = (
        "from tests.bed.box import NodeBox\n"
        "box = NodeBox('2.1').boot()\n"
        "box.cri.run_container(box.cri.run_sandbox('runc'), ['sleep', '1000'])\n"
        "box.serve(['sleep', '1000'])\n"
        "print(box.folder, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert folder.name not in scope.sweep()  # its owner lives
        owner.send_signal(signal.SIGKILL)
    assert _traces(folder)

    assert folder.name in scope.sweep()

    assert _traces(folder) == []


def _traces(folder: Path) -> list[str]:
    """What is left of a box on this machine."""
    name = folder.name
    traces = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{name}")]
    traces += [
        str(path) for path in (folder, folder.with_name(f"{name}.lock"), Path("/run/netns") / name) if path.exists()
    ]
    traces += [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            traces += [str(cmdline)] if name in cmdline.read_text() else []
        except OSError:
            continue
    return traces
