"""A real node becomes a Flox node, runs Flox pods, and is as before: real systemd, containerd, runc, Nix and git."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import flox, payload, releases
from tests.bed.box import NodeBox
from tests.bed.cri import CriError
from tests.node.tree import tree

CONFIG = "etc/containerd/config.toml"


@pytest.fixture(params=releases.DEFAULT)
def box(request: pytest.FixtureRequest) -> Iterator[NodeBox]:
    with NodeBox(request.param) as box:
        yield box


@pytest.fixture
def flox_box(box: NodeBox, tmp_path: Path) -> NodeBox:
    flox.install(box)
    flox.start_hub(box, tmp_path)
    flox.load_empty_image(box)
    return box


def test_a_pod_runs_a_command_that_exists_only_in_its_environment(flox_box: NodeBox) -> None:
    pod = flox.run_flox_sandbox(flox_box, "demo/hello")
    container = flox.run_flox_container(flox_box, pod, ["hello", "--greeting=it works"])
    status = flox_box.cri.wait_exited(container)
    assert (status.exit_code, flox_box.cri.logs(container)) == (0, "it works\n")


def test_an_exec_sees_the_environment_and_the_pods_own_variables(flox_box: NodeBox) -> None:
    pod = flox.run_flox_sandbox(flox_box, "demo/hello")
    # GNU hello ends at once; a container needs something that stays, and the environment's own interpreter is there.
    flox_box.cri.run_container(pod, ["sleep", "600"], name="main", env={"GREETING": "from the pod"})
    container = flox_box.cri.containers()[0].id
    assert flox_box.cri.exec(container, "hello", "--greeting=by exec").stdout == "by exec\n"
    seen = dict(line.split("=", 1) for line in flox_box.cri.exec(container, "env").stdout.splitlines())
    assert seen["GREETING"] == "from the pod"
    assert seen["FLOX_ENV"].startswith("/nix/store/")
    assert seen["PATH"].startswith(f"{seen['FLOX_ENV']}/bin:")


def test_a_container_sees_the_closure_of_its_environment_and_nothing_else_of_the_store(flox_box: NodeBox) -> None:
    pod = flox.run_flox_sandbox(flox_box, "demo/hello")
    flox_box.cri.run_container(pod, ["sleep", "600"])
    container = flox_box.cri.containers()[0].id
    seen = set(flox_box.cri.exec(container, "ls", "/nix/store").stdout.split())
    on_the_node = set(flox_box.run("ls /nix/store").stdout.split())
    assert any(name.endswith("-hello-2.10") or "-hello-" in name for name in seen)
    assert seen < on_the_node
    assert not any("-git-" in name or "-flox-node-" in name for name in seen)
    assert flox_box.cri.exec(container, "touch", "/nix/store/x").exit_code != 0, "the view is read-only"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (None, "flox.dev/environment"),
        ("hello", "owner/name"),
        ("demo/hello@2", "demo/hello:2"),
        ("demo/hello:0", "generation"),
        ("../etc/passwd", "owner/name"),
        ("demo/nothing", "demo/nothing"),
    ],
)
def test_a_wrong_environment_fails_the_sandbox_with_a_text_that_helps(
    flox_box: NodeBox, environment: str | None, says: str
) -> None:
    with pytest.raises(CriError) as error:
        flox.run_flox_sandbox(flox_box, environment)
    assert "flox: " in error.value.details
    assert says in error.value.details.partition("flox: ")[2]
    assert not flox_box.cri.sandboxes() or all(sandbox.state for sandbox in flox_box.cri.sandboxes())


def test_a_second_install_writes_nothing_and_restarts_nothing(flox_box: NodeBox) -> None:
    pid = flox_box.main_pid("containerd.service")
    before = tree(flox_box)
    result = json.loads(flox.flox_node(flox_box, "install", "--payload", payload.folder(), "--json").stdout)
    assert result["changed"] is False
    assert flox_box.main_pid("containerd.service") == pid
    assert tree(flox_box) == before


def test_install_and_purge_leave_the_node_as_it_was_and_other_pods_run_on(box: NodeBox) -> None:
    pod = box.cri.run_sandbox("runc")
    container = box.cri.run_container(pod, ["sleep", "600"])
    pid = box.cri.container_pid(container)
    before = tree(box)
    config = (box.root / CONFIG).read_bytes()
    flox.install(box)
    assert box.cri.container_pid(container) == pid
    assert (box.root / CONFIG).read_bytes() != config
    assert "flox" in box.cri.handlers()
    assert box.main_pid("kubelet.service"), "the kubelet is bound to containerd and must run again"
    flox.flox_node(box, "uninstall", "--purge")
    assert (box.root / CONFIG).read_bytes() == config
    assert tree(box) == before
    assert "flox" not in box.cri.handlers()
    assert box.cri.exec(container, "echo", "alive").stdout == "alive\n"
    assert box.cri.container_pid(container) == pid


def test_a_plan_shows_the_diff_and_writes_nothing(box: NodeBox) -> None:
    before = tree(box)
    shown = flox.flox_node(box, "plan", "--payload", payload.folder()).stdout
    assert "+++ /etc/containerd/config.toml" in shown
    assert tree(box) == before
    assert not (box.root / "run/flox-node").exists()


def test_an_uninstall_is_refused_while_a_flox_pod_runs(flox_box: NodeBox) -> None:
    pod = flox.run_flox_sandbox(flox_box, "demo/hello", name="web")
    refused = flox.flox_node(flox_box, "uninstall", check=False)
    assert refused.returncode == 6
    assert "default/web" in refused.stderr
    flox_box.cri.remove_sandbox(pod)
    flox.flox_node(flox_box, "uninstall")


def test_the_command_on_the_node_itself_tells_its_status(flox_box: NodeBox) -> None:
    told = json.loads(flox_box.run(["/opt/flox-node/bin/flox-node", "status", "--json"]).stdout)
    assert told["installed"]
    assert told["handler_live"]
    assert told["drift"] == []


def test_a_node_is_still_a_flox_node_after_a_power_cut(flox_box: NodeBox, tmp_path: Path) -> None:
    flox_box.reboot()
    pod = flox.run_flox_sandbox(flox_box, "demo/hello", name="after")
    container = flox.run_flox_container(flox_box, pod, ["hello", "--greeting=after the cut"])
    flox_box.cri.wait_exited(container)
    assert flox_box.cri.logs(container) == "after the cut\n"


def test_deleting_a_pod_leaves_no_record_and_no_root_of_it(flox_box: NodeBox) -> None:
    pod = flox.run_flox_sandbox(flox_box, "demo/hello")
    assert (flox_box.root / f"run/flox-node/pods/{pod.id}.json").exists()
    assert flox_box.run(["readlink", f"/nix/var/nix/gcroots/flox-node/pod-{pod.id}"]).stdout.startswith("/nix/store/")
    flox_box.cri.remove_sandbox(pod)
    assert not (flox_box.root / f"run/flox-node/pods/{pod.id}.json").exists()
    assert flox_box.run("ls /nix/var/nix/gcroots/flox-node").stdout.count("pod-") == 0
