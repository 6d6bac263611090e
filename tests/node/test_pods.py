"""Flox pods on a real node, over the CRI as a kubelet runs them: real containerd, runc, Nix and git."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import flox, releases
from tests.bed.box import NodeBox
from tests.bed.cri import CriError


@pytest.fixture(scope="module", params=releases.DEFAULT, ids=lambda release: f"containerd-{release}")
def node(request: pytest.FixtureRequest, bed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeBox]:
    """A Flox node for all tests of this file: pods do not get in each other's way, so neither do these tests."""
    with NodeBox(request.param) as box:
        flox.install(box)
        flox.start_hub(box, tmp_path_factory.mktemp("hub"))
        flox.load_empty_image(box)
        yield box


@pytest.fixture(autouse=True)
def _no_pods_left(node: NodeBox) -> Iterator[None]:
    yield
    for sandbox in node.cri.sandboxes():
        node.cri.remove_sandbox(sandbox.id)


def test_a_pod_runs_a_command_that_exists_only_in_its_environment(node: NodeBox) -> None:
    pod = flox.run_flox_sandbox(node, "demo/hello")
    container = flox.run_flox_container(node, pod, ["hello", "--greeting=it works"])
    status = node.cri.wait_exited(container)
    assert (status.exit_code, node.cri.logs(container)) == (0, "it works\n")


def test_an_exec_sees_the_environment_and_the_pods_own_variables(node: NodeBox) -> None:
    pod = flox.run_flox_sandbox(node, "demo/hello")
    # GNU hello ends at once; a container needs something that stays, and the environment's own interpreter is there.
    node.cri.run_container(pod, ["sleep", "600"], name="main", env={"GREETING": "from the pod"})
    container = node.cri.containers()[0].id
    assert node.cri.exec(container, "hello", "--greeting=by exec").stdout == "by exec\n"
    seen = dict(line.split("=", 1) for line in node.cri.exec(container, "env").stdout.splitlines())
    assert seen["GREETING"] == "from the pod"
    assert seen["FLOX_ENV"].startswith("/nix/store/")
    assert seen["PATH"].startswith(f"{seen['FLOX_ENV']}/bin:")


def test_a_container_sees_the_closure_of_its_environment_and_nothing_else_of_the_store(node: NodeBox) -> None:
    pod = flox.run_flox_sandbox(node, "demo/hello")
    node.cri.run_container(pod, ["sleep", "600"])
    container = node.cri.containers()[0].id
    seen = set(node.cri.exec(container, "ls", "/nix/store").stdout.split())
    on_the_node = set(node.run("ls /nix/store").stdout.split())
    assert any(name.endswith("-hello-2.10") or "-hello-" in name for name in seen)
    assert seen < on_the_node
    assert not any("-git-" in name or "-flox-node-" in name for name in seen)
    assert node.cri.exec(container, "touch", "/nix/store/x").exit_code != 0, "the view is read-only"


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
def test_a_wrong_environment_fails_the_first_container_with_a_text_that_helps(
    node: NodeBox, environment: str | None, says: str
) -> None:
    pod = flox.run_flox_sandbox(node, environment)
    for name in ("skipped", "main"):
        with pytest.raises(CriError) as error:
            flox.run_flox_container(node, pod, ["hello"], name=name)
        assert "flox: " in error.value.details
        assert says in error.value.details.partition("flox: ")[2]
    assert (node.root / f"run/flox-node/refusals/{pod.id}.json").exists()
    node.cri.remove_sandbox(pod)
    assert not (node.root / f"run/flox-node/refusals/{pod.id}.json").exists()


def test_a_fetch_goes_on_in_a_unit_of_its_own_when_the_sandbox_gave_up(node: NodeBox, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f"{flox.hub_policy()}[realise]\nwait_s = 5\nfreshness_s = 0\n")
    flox.flox_node(node, "policy", "apply", policy)
    node.write("/run/flox-double.fault", "slow:10")
    with pytest.raises(CriError) as gave_up:
        flox.run_flox_sandbox(node, "demo/web")
    assert "(code fetching)" in gave_up.value.details
    units = node.run("systemctl list-units --plain --no-legend 'flox-realise-*.service'").stdout.split()
    assert "running" in units
    shown = node.run(f"systemctl show {units[0]}").stdout
    assert "Slice=flox-realise.slice" in shown
    assert "MemoryMax=4294967296" in shown
    node.run("rm /run/flox-double.fault")
    said = ""
    for _ in range(20):
        try:
            node.cri.remove_sandbox(flox.run_flox_sandbox(node, "demo/web"))
            break
        except CriError as error:
            said = error.details
        assert "(code fetching)" in said
    else:
        pytest.fail(said)
    policy.write_text(flox.hub_policy())
    flox.flox_node(node, "policy", "apply", policy)


def test_an_uninstall_is_refused_while_a_flox_pod_runs(node: NodeBox) -> None:
    pod = flox.run_flox_sandbox(node, "demo/hello", name="web")
    refused = flox.flox_node(node, "uninstall", check=False)
    assert refused.returncode == 6
    assert "default/web" in refused.stderr
    node.cri.remove_sandbox(pod)


def test_a_node_is_still_a_flox_node_after_a_power_cut(node: NodeBox) -> None:
    node.reboot()
    pod = flox.run_flox_sandbox(node, "demo/hello", name="after")
    container = flox.run_flox_container(node, pod, ["hello", "--greeting=after the cut"])
    node.cri.wait_exited(container)
    assert node.cri.logs(container) == "after the cut\n"


def test_deleting_a_pod_leaves_no_record_and_no_root_of_it(node: NodeBox) -> None:
    pod = flox.run_flox_sandbox(node, "demo/hello")
    assert (node.root / f"run/flox-node/pods/{pod.id}.json").exists()
    assert node.run(["readlink", f"/nix/var/nix/gcroots/flox-node/pod-{pod.id}"]).stdout.startswith("/nix/store/")
    node.cri.remove_sandbox(pod)
    assert not (node.root / f"run/flox-node/pods/{pod.id}.json").exists()
    assert node.run("ls /nix/var/nix/gcroots/flox-node").stdout.count("pod-") == 0
