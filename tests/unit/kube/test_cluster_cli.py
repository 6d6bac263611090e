"""The commands: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flox_node.kube import waiting
from flox_node.kube.api import Object
from flox_node.kube.resources import NODES, PODS
from flox_node.kube.waiting import follow
from tests.unit.command import Done, call
from tests.unit.kube.fake_cluster import DAEMON_SET, FakeCluster, flox_pod


class Cluster(FakeCluster):
    """Its controllers take a step after each look at the nodes."""

    def request(self, method: str, path: str, *arguments: Any, **given: Any) -> Object:
        answer = super().request(method, path, *arguments, **given)
        if path == NODES.path():
            self.step()
        return answer


class Run:
    """Runs commands against a fake cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._monkeypatch.setattr(waiting, "_PAUSE_S", 0.01)
        self.use(Cluster("a", "b"))

    def use(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self._monkeypatch.setattr("flox_node.kube.kubeconfig.connect", lambda *_: cluster)

    def __call__(self, *words: str) -> Done:
        return call("cluster", *words)

    def failing(self, *words: str) -> dict[str, Any]:
        done = self(*words, "--json")
        assert done.exit_code
        told: dict[str, Any] = json.loads(done.stdout)
        return told


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def body(done: Done) -> dict[str, Any]:
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_install_tells_each_object_and_each_change_of_a_node(run: Run) -> None:
    done = run("install")
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    assert lines[0] == "Namespace flox-node created"
    assert [line for line in lines if line.startswith("a: ")] == [
        "a: waiting, NoPod: flox-node's pod is not there yet.",
        "a: ready, Installed: The handler flox is live.",
    ]
    table = done.stdout.splitlines()
    assert table[0].split() == ["NODE", "STATE", "REASON", "PLATFORM", "CONTAINERD", "PAYLOAD", "SHIM", "FLOX", "SINCE"]
    assert table[1].split()[:4] == ["a", "ready", "Installed", "2.1.4"]


def test_with_json_there_is_one_object_and_quiet_means_nothing_else(run: Run) -> None:
    done = run("install", "--json", "--quiet")
    assert done.stderr == ""
    told = body(done)
    assert told["state"] == "ready"
    assert told["objects"][0] == {"kind": "Namespace", "name": "flox-node", "change": "created"}
    assert [node["name"] for node in told["nodes"]] == ["a", "b"]


def test_a_dry_run_changes_nothing(run: Run) -> None:
    before = dict(run.cluster.objects)
    told = body(run("install", "--dry-run=server", "--json"))
    assert told["dry_run"] is True
    assert run.cluster.objects == before
    assert run("install", "--dry-run=client").exit_code == 2


def test_the_options_reach_the_objects(run: Run, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("adopt = true\n")
    assert run("install", "--registry=mirror.test/x", "--no-wait", f"--settings={settings}").exit_code == 0
    spec = run.cluster.objects[DAEMON_SET]["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"].startswith("mirror.test/x/flox-node:")
    config = run.cluster.objects["/api/v1/namespaces/flox-node/configmaps/flox-node"]
    assert config["data"]["settings.toml"] == "adopt = true\n"

    assert run("upgrade", "--image=mirror.test/x/flox-node:9").exit_code == 0
    config = run.cluster.objects["/api/v1/namespaces/flox-node/configmaps/flox-node"]
    assert config["data"]["settings.toml"] == "adopt = true\n"
    assert body(run("status", "--json"))["image"] == "mirror.test/x/flox-node:9"


def test_an_old_cluster_is_refused_before_anything_is_written(run: Run) -> None:
    run.use(Cluster("a", version="1.30"))
    assert run.failing("install")["exit_code"] == 3
    assert {method for method, _, _ in run.cluster.requests} == {"GET"}


def test_a_node_that_does_not_get_there_fails_the_command_and_is_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster("a", "b", stuck=("b",))
    run.use(cluster)
    assert follow.__kwdefaults__ is not None
    monkeypatch.setitem(follow.__kwdefaults__, "clock", cluster.clock)
    monkeypatch.setitem(follow.__kwdefaults__, "sleep", cluster.sleep)
    done = run("install", "--timeout=20")
    assert done.exit_code == 9
    assert "1 of 2 nodes are not ready yet: b " in done.stderr
    assert "-> b: flox-node's pod looks at the node." in done.stdout
    assert run("status").exit_code == 7
    assert json.loads(run("status", "--json").stdout)["state"] == "working"


def test_a_node_that_refuses_is_shown_and_is_no_failure(run: Run) -> None:
    run.use(Cluster("a", "b", refusing=("b",)))
    done = run("install")
    assert done.exit_code == 0
    assert "-> b: Bottlerocket renders" in done.stdout
    assert run("status").exit_code == 0


def test_status_of_a_cluster_without_us_names_the_next_command(run: Run) -> None:
    done = run("status")
    assert done.exit_code == 0
    assert "flox-node cluster install" in done.stdout
    assert body(run("status", "--json"))["installed"] is False


def test_upgrade_needs_something_to_upgrade(run: Run) -> None:
    error = run.failing("upgrade", "--image=flox-node:9")
    assert (error["exit_code"], error["remedy"]) == (3, "Use `flox-node cluster install`.")
    assert run("upgrade").exit_code == 2


def test_uninstall_goes_from_refused_to_done_to_nothing_to_do(run: Run) -> None:
    run("install")
    pod = PODS.path("web", namespace="default")
    run.cluster.put(pod, flox_pod("web", "a"))
    error = run.failing("uninstall")
    assert error["exit_code"] == 6
    assert "default/web (a)" in error["cause"]

    run.cluster.objects.pop(pod)
    done = run("uninstall")
    assert done.exit_code == 0
    assert "The cluster is as before." in done.stdout
    assert "reverted" in done.stdout
    assert "Nothing to do" in run("uninstall").stdout
    told = body(run("uninstall", "--json"))
    assert (told["changed"], told["steps"]) == (False, [])


def test_doctor_exits_with_7_on_a_problem_and_each_finding_has_a_remedy(run: Run) -> None:
    run("install")
    assert run("doctor").exit_code == 0
    run.cluster.objects[NODES.path("a")]["spec"]["taints"] = [{"key": "flox.dev/not-ready"}]
    done = run("doctor")
    assert done.exit_code == 7
    assert "startup-taint" in done.stdout
    assert "-> see the other findings" in done.stdout
    found = json.loads(run("doctor", "--json").stdout)["checks"]
    assert next(each for each in found if each["id"] == "startup-taint")["state"] == "problem"


def test_collect_writes_a_new_file_for_nobody_else(run: Run, tmp_path: Path) -> None:
    run("install")
    output = tmp_path / "support.tar.gz"
    assert run("collect", "-o", str(output)).exit_code == 0
    assert output.stat().st_mode & 0o777 == 0o600
    assert run.failing("collect", "-o", str(output))["exit_code"] == 2
