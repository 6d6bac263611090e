"""What cannot be had: refusals that only the pod's author can cure end its first container, others its sandbox; pods
without an environment where the policy takes them; what is told of hooks and of containers that nobody listed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bed import releases
from tests.bed.environment import script
from tests.containerd.test_shim_runc import (
    Container,
    Node,
    built,  # noqa: F401 - a fixture
    node,  # noqa: F401 - a fixture
)


def refuse(node: Node, code: str, *, final: bool) -> None:  # noqa: F811
    answer = {"schema_version": 1, "ok": False, "code": code, "final": final, "message": "environment demo/hello: no"}
    node.answer(f"echo '{json.dumps(answer)}'; exit 1\n")


def events(node: Node) -> list[dict[str, Any]]:  # noqa: F811
    return [json.loads(line) for line in node.path("/var/log/flox-node/runtime.jsonl").read_text().splitlines()]


def refused_pod(node: Node, **flox: str) -> Container:  # noqa: F811
    refuse(node, "environment-not-found", final=True)
    sandbox = node.sandbox(environment="demo/hello", **flox)
    assert sandbox.create() == 0
    assert not node.path(f"/run/flox-node/pods/{sandbox.id}.json").exists()
    return sandbox


def test_a_final_refusal_ends_whichever_container_starts_first(node: Node) -> None:  # noqa: F811
    sandbox = refused_pod(node, skip_containers="main")
    assert events(node)[-1]["level"] == "error"
    assert "environment demo/hello: no (code environment-not-found)" in events(node)[-1]["message"]
    container = node.container(sandbox, "/bin/true")
    assert container.create() == 1
    assert container.error == "flox: environment demo/hello: no (code environment-not-found)"
    sandbox.call("delete", "--force", sandbox.id)
    assert not list(node.path("/run/flox-node/refusals").iterdir())


def test_a_healing_refusal_fails_the_sandbox(node: Node) -> None:  # noqa: F811
    refuse(node, "network", final=False)
    sandbox = node.sandbox(environment="demo/hello")
    assert sandbox.create() == 1
    assert sandbox.error == "flox: environment demo/hello: no (code network)"


def test_a_restarted_container_finds_out_that_the_reason_is_gone(node: Node) -> None:  # noqa: F811
    sandbox = refused_pod(node)
    assert node.container(sandbox, "hello").create() == 1
    node.resolve()
    output = node.container(sandbox, "hello", "again").run().wait()
    assert "again" in output
    assert node.path(f"/run/flox-node/pods/{sandbox.id}.json").exists()
    assert node.path(f"/nix/var/nix/gcroots/flox-node/pod-{sandbox.id}").is_symlink()
    assert not node.path(f"/run/flox-node/refusals/{sandbox.id}.json").exists()


@pytest.mark.parametrize(("namespace", "plain"), [("default", True), ("other", False)])
def test_a_pod_without_an_environment_runs_plainly_where_the_policy_says_so(
    node: Node,  # noqa: F811
    namespace: str,
    plain: bool,
) -> None:
    node.policy(inner_runtime=str(releases.runc()), namespaces={namespace: {"without_environment": "plain"}})
    sandbox = node.sandbox()
    before = (sandbox.bundle / "config.json").read_bytes()
    assert sandbox.create() == 0
    assert (sandbox.bundle / "config.json").read_bytes() == before
    container = node.container(sandbox, "/bin/true")
    before = (container.bundle / "config.json").read_bytes()
    container.create()
    assert (container.bundle / "config.json").read_bytes() == before
    reason = "no annotation flox.dev/environment"
    assert (reason in (container.bundle / "log.json").read_text()) != plain


def test_a_policy_skips_containers_by_pattern(node: Node) -> None:  # noqa: F811
    node.policy(inner_runtime=str(releases.runc()), pods={"skip_containers": ["ma*"]})
    container = node.pod("/bin/true")
    before = (container.bundle / "config.json").read_bytes()
    container.create()
    assert (container.bundle / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flox", "warned"),
    [({}, True), ({"only_containers": "m*"}, False), ({"skip_containers_exec": "main"}, False)],
)
def test_a_container_that_nobody_listed_and_whose_image_has_the_command_is_warned_of(
    node: Node,  # noqa: F811
    flox: dict[str, str],
    warned: bool,
) -> None:
    container = node.pod("redis", flox=flox)
    script(container.bundle / "rootfs/usr/bin/redis", "#!/bin/sh\n")
    container.create()
    told = [event.get("message", "") for event in events(node) if event.get("container") == container.id]
    assert any('brings the command "redis" itself' in message for message in told if message) == warned


def test_a_job_of_gitlab_that_can_be_suspended_is_refused_by_name(node: Node) -> None:  # noqa: F811
    container = node.pod("/bin/sh", "/runner-overlay-init/entrypoint.sh", "sh")
    mount = {"destination": "/runner-overlay-init", "type": "bind", "source": "/tmp", "options": ["rbind", "ro"]}
    node.edit(container, mounts=[*container.config["mounts"], mount])
    assert container.create() == 1
    assert "FF_SUSPENDABLE_ENVIRONMENTS" in container.error


def test_an_unknown_annotation_is_warned_of(node: Node) -> None:  # noqa: F811
    sandbox = node.sandbox(environment="demo/hello", enviroment="x")
    assert sandbox.create() == 0
    told = [event for event in events(node) if event.get("sandbox") == sandbox.id and event["level"] == "warning"]
    assert [event["message"] for event in told] == ['the annotation "flox.dev/enviroment" is unknown']


def test_a_hook_that_failed_is_in_the_nodes_log_with_its_last_line(node: Node) -> None:  # noqa: F811
    container = node.pod("hello").run()
    container.wait()
    log = node.path("/var/log/pods/default_web_b9a1e0d4/main/0.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    stamp = "2026-11-28T01:02:03.4Z"
    log.write_text(
        f"{stamp} stdout F progress\n{stamp} stderr F no database at flox_pat_x db:5432\n"
        f"{stamp} stderr F \u2718 ERROR: Running hook.on-activate failed\n"
    )
    assert container.call("delete", container.id) == 0
    told = events(node)[-1]
    assert (told["event"], told["level"], told["environment"]) == ("hook", "error", "demo/hello")
    assert told["message"].endswith("ended with 1 before its command: no database at (removed) db:5432")
    log.write_text(f"{stamp} stderr F all is well\n")
    other = node.pod("hello").run()
    other.wait()
    assert other.call("delete", other.id) == 0
    assert events(node)[-1]["event"] != "hook"
