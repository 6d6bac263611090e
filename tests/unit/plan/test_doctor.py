"""The doctor: what is decided about what was found, and that the reference says the same as the code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flox_node.containerd.config.effective import MapReader, load
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live.cri import Container, Sandbox
from flox_node.environments.annotations import annotation_faults
from flox_node.host import RunningProcess
from flox_node.host.probes import FolderProbe, Space
from flox_node.host.selinux import Mode
from flox_node.plan.doctor import CHECKS, Finding, State, daemon, examine, installation, machine, nri, pods
from flox_node.plan.doctor.check import Verdict
from flox_node.settings import Settings
from tests.unit.fake_node import FakeNode

REFERENCE = Path(__file__).parents[3] / "docs/reference.md"
LIVE = daemon.HandlerFacts(
    installed=True, binary_name="/opt/flox-node/bin/flox-runtime", features_known=True, default_features_known=True
)
READY = Sandbox("id1", "default", "web", "flox", True, 100, {"flox.dev/environment": "demo/hello"})


def test_the_reference_has_every_check_with_what_it_looks_at_and_its_remedy() -> None:
    rows = [line for line in REFERENCE.read_text().splitlines() if line.startswith("| `")]
    for check in CHECKS:
        assert f"| `{check.id}` | {check.title} | {check.remedy} |" in rows
    named = {line.split("`")[1] for line in rows if line.count("|") == 4}
    assert {check.id for check in CHECKS} <= named
    assert len({check.id for check in CHECKS}) == len(CHECKS)


def test_every_check_named_beside_a_symptom_exists() -> None:
    section = REFERENCE.read_text().partition("| what you see | check |")[2].partition("\n\n")[0]
    named = {word for line in section.splitlines()[2:] for word in line.rpartition(" | ")[2].split("`")[1::2]}
    assert named <= {check.id for check in CHECKS}
    assert len(named) > 10


@pytest.mark.parametrize(
    ("verdict", "state", "says"),
    [
        (daemon.decide_live(LIVE), State.OK, ""),
        (daemon.decide_live(daemon.HandlerFacts(True, None, None, None)), State.PROBLEM, "serves no handler flox"),
        (daemon.decide_live(daemon.HandlerFacts(True, "/x", None, None)), State.PROBLEM, "calls /x instead of"),
        (daemon.decide_live(daemon.HandlerFacts(False, None, None, None)), State.SKIPPED, "not installed"),
        (daemon.decide_features(LIVE), State.OK, ""),
        (
            daemon.decide_features(daemon.HandlerFacts(True, LIVE.binary_name, False, True)),
            State.PROBLEM,
            "for its features",
        ),
        (daemon.decide_features(daemon.HandlerFacts(True, LIVE.binary_name, False, False)), State.OK, ""),
        (daemon.decide_features(daemon.HandlerFacts(True, LIVE.binary_name, None, None)), State.SKIPPED, "1.x"),
        (daemon.decide_rivals(daemon.Rivals("", ())), State.OK, ""),
        (daemon.decide_rivals(daemon.Rivals("/usr/local/bin/x", ())), State.PROBLEM, "another installer"),
        (daemon.decide_rivals(daemon.Rivals("", ("/usr/local/bin/x",))), State.WARNING, "left by"),
        (daemon.decide_inner_runtime(("/usr/sbin/runc", True)), State.OK, ""),
        (daemon.decide_inner_runtime(("/usr/sbin/runc", False)), State.PROBLEM, "/usr/sbin/runc is not there"),
        (daemon.decide_inner_runtime((None, False)), State.SKIPPED, ""),
        (daemon.decide_cgroups(daemon.CgroupFacts("systemd", True, True)), State.OK, "systemd"),
        (daemon.decide_cgroups(daemon.CgroupFacts("", False, None)), State.OK, "cgroupfs"),
        (daemon.decide_cgroups(daemon.CgroupFacts("", True, False)), State.PROBLEM, "flox uses cgroupfs"),
        (daemon.decide_cgroups(daemon.CgroupFacts("systemd", False, False)), State.PROBLEM, "the kubelet uses systemd"),
        (daemon.decide_devices((True, {"enableCDI": False})), State.WARNING, "enable_cdi is off"),
        (daemon.decide_devices((True, {"enableCDI": True})), State.OK, ""),
        (daemon.decide_devices((False, {})), State.OK, ""),
        (nri.decide([nri.Listener("one", "/a"), nri.Listener("other", "/b")]), State.OK, "/a, /b"),
        (
            nri.decide([nri.Listener("one", "/a"), nri.Listener("other", "/a")]),
            State.PROBLEM,
            "one and other listen on /a",
        ),
        (installation.decide_receipt(installation.ReceiptFacts("", True, False, False, True)), State.OK, "installed"),
        (installation.decide_receipt(installation.ReceiptFacts("", True, True, False, True)), State.PROBLEM, "killed"),
        (
            installation.decide_receipt(installation.ReceiptFacts("", True, False, True, True)),
            State.PROBLEM,
            "not confirmed",
        ),
        (
            installation.decide_receipt(installation.ReceiptFacts("", False, False, False, True)),
            State.PROBLEM,
            "receipt.json is not",
        ),
        (
            installation.decide_receipt(installation.ReceiptFacts("torn", False, False, False, False)),
            State.PROBLEM,
            "torn",
        ),
        (installation.decide_content(None), State.SKIPPED, "--deep"),
        (installation.decide_content([]), State.OK, ""),
        (installation.decide_content(["/nix/store/x"]), State.PROBLEM, "/nix/store/x"),
        (installation.decide_flox_version("1.14.1"), State.OK, ""),
        (installation.decide_flox_version("1.9.0"), State.OK, ""),
        (installation.decide_flox_version("1.8.12"), State.PROBLEM, "older than 1.9.0"),
        (installation.decide_flox_version("what?"), State.PROBLEM, "no version"),
        (installation.decide_flox_version(None), State.SKIPPED, ""),
        (installation.decide_units(["flox-node-gc.service"]), State.PROBLEM, "flox-node-gc.service"),
        (machine.decide_writable([FolderProbe("/opt", "Read-only file system")]), State.PROBLEM, "/opt: Read-only"),
        (machine.decide_executable([FolderProbe("/opt", "", "Permission denied")]), State.PROBLEM, "/opt: Perm"),
        (machine.decide_executable([FolderProbe("/opt")]), State.OK, ""),
        (machine.decide_bytes([Space("/nix", 10 << 20, None)]), State.PROBLEM, "/nix: 10 MiB free"),
        (machine.decide_bytes([Space("/nix", 4 << 30, 1)]), State.OK, ""),
        (machine.decide_inodes([Space("/nix", 4 << 30, 12)]), State.PROBLEM, "12 inodes free"),
        (machine.decide_inodes([Space("/nix", 4 << 30, None)]), State.OK, ""),
        (
            machine.decide_selinux(machine.Labels(Mode.ENFORCING, (("/nix", "default_t", "usr_t"),))),
            State.PROBLEM,
            "/nix has the type default_t instead of usr_t",
        ),
        (
            machine.decide_selinux(machine.Labels(Mode.PERMISSIVE, (("/nix", "default_t", "usr_t"),))),
            State.WARNING,
            "",
        ),
        (machine.decide_selinux(machine.Labels(Mode.ABSENT, ())), State.OK, "absent"),
        (machine.decide_nix_folder([("/nix", "/data/nix")]), State.PROBLEM, "/nix is a symlink to /data/nix"),
        (machine.decide_foreign_nix(["/etc/nix/nix.conf"]), State.WARNING, "/etc/nix/nix.conf"),
        (machine.decide_ignored([]), State.OK, ""),
        (machine.decide_ignored([("/etc/flox.toml", "floxhub_url")]), State.WARNING, "the policy has floxhub.url"),
        (machine.decide_foreign_mounts([]), State.OK, ""),
        (machine.decide_foreign_mounts([("/run/flox-node", "tmpfs")]), State.PROBLEM, "/run/flox-node is hidden"),
        (pods.decide_orphans(()), State.OK, ""),
        (pods.decide_orphans(("/run/flox-node/pods/x.json",)), State.WARNING, "1 records belong to no pod"),
        (machine.decide_kubelet([]), State.PROBLEM, "no kubelet"),
        (machine.decide_labels({"x": "--node-labels=flox.dev/enabled=true,a=b"}), State.OK, ""),
        (machine.decide_labels({"x": "flox.dev/not-ready=true:NoSchedule"}), State.OK, ""),
        (machine.decide_labels({"x": "flox-runtime=enabled"}), State.WARNING, "x: flox-runtime=enabled"),
        (machine.decide_labels({"x": "flox.dev/runtime=installed"}), State.WARNING, "flox.dev/runtime=installed"),
        (machine.decide_labels({"x": 'node-label:\n - "flox.dev/enable=true"'}), State.WARNING, "flox.dev/enable=true"),
        (pods.decide_failures(None), State.SKIPPED, ""),
        (pods.decide_failures([]), State.OK, ""),
        (pods.decide_failures([{"namespace": "a", "pod": "b", "message": "no"}]), State.WARNING, "a/b: no"),
    ],
)
def test_what_was_found_decides(verdict: Verdict, state: State, says: str) -> None:
    assert verdict.state is state
    assert says in verdict.cause


@pytest.mark.parametrize(
    ("annotations", "handler", "says"),
    [
        ({"flox.dev/environment": "demo/hello"}, "flox", []),
        ({"flox.dev/environment": "demo/hello:3", "flox.dev/activate-mode": "dev"}, "flox", []),
        ({"flox.dev/environment": "demo/hello@3"}, "flox", ["with a colon, demo/hello:3"]),
        ({"flox.dev/environment": "hello"}, "flox", ["owner/name"]),
        ({}, "flox", ["no annotation flox.dev/environment"]),
        ({"flox.dev/environment": "demo/hello"}, "runc", ["not runtimeClassName flox"]),
        (
            {"flox.dev/environment": "demo/hello", "flox.dev/enviroment": "x"},
            "flox",
            ["meant is perhaps flox.dev/environment"],
        ),
        ({"flox.dev/environment": "demo/hello", "flox.dev/debug": "1"}, "flox", ['flox.dev/debug" is unknown']),
        ({"other.dev/x": "y"}, "runc", []),
    ],
)
def test_a_pods_annotations_are_judged(annotations: dict[str, str], handler: str, says: list[str]) -> None:
    faults = annotation_faults(annotations, handler)
    assert len(faults) == len(says)
    assert all(text in fault for text, fault in zip(says, faults, strict=True))


def test_only_a_sandbox_from_before_the_restart_in_which_nothing_has_ended_is_stuck() -> None:
    old, ended, fresh, ready = (
        Sandbox(name, "default", name, "runc", is_ready, created)
        for name, is_ready, created in (
            ("old", False, 10), ("ended", False, 10), ("fresh", False, 90), ("ready", True, 10)
        )
    )  # fmt: skip
    facts = pods.RestartFacts(50, (old, ended, fresh, ready), (Container("c", "ended", "main", True),))
    verdict = pods.decide_stuck(facts)
    assert verdict.state is State.PROBLEM
    assert "default/old" in verdict.cause
    assert all(f"default/{name}" not in verdict.cause for name in ("ended", "fresh", "ready"))


_NRI = '[plugins."io.containerd.nri.v1.nri"]\n'


@pytest.mark.parametrize(
    ("version", "text", "socket"),
    [
        ("2.1.4", "version = 3", "/run/nri/nri.sock"),
        ("2.1.4", f"version = 2\n{_NRI}disable = false", "/run/nri/nri.sock"),
        ("2.1.4", f"version = 3\n{_NRI}disable = true", None),
        ("2.1.4", f"version = 3\n{_NRI}disable_connections = true", None),
        ("2.1.4", f'version = 3\n{_NRI}socket_path = "/var/run/mine.sock"', "/run/mine.sock"),
        ("2.1.4", 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]', None),
        ("2.1.4", 'disabled_plugins = ["cri"]', None),  # Docker's
        ("1.7.24", "version = 2", None),
        ("1.7.24", f"version = 2\n{_NRI}disable = false", "/run/nri/nri.sock"),
        ("1.6.20", f"version = 2\n{_NRI}disable = false", None),
    ],
)
def test_where_a_containerd_listens_for_plugins_of_nri(version: str, text: str, socket: str | None) -> None:
    effective = load("/c.toml", MapReader({"/c.toml": text.encode()}), ContainerdVersion.parse(version))
    assert nri.socket_of(effective) == socket


def _by_id(node: FakeNode) -> dict[str, Finding]:
    return {result.id: result for result in examine(node.host, Settings())}


def test_a_plain_node_without_us_has_no_problem_but_its_missing_kubelet_and_is_left_as_it_was(node: FakeNode) -> None:
    before = node.tree()
    found = _by_id(node)
    assert {name for name, result in found.items() if result.state is State.PROBLEM} == {"kubelet-running"}
    assert all(bool(result.remedy) == (result.state in ("warning", "problem")) for result in found.values())
    assert node.tree() == before


def _kubelet(*arguments: str) -> Callable[[FakeNode], None]:
    process = RunningProcess(1, "/usr/bin/kubelet", ("/usr/bin/kubelet", *arguments), "kubelet.service", ())
    return lambda node: node.processes.others.append(process)


def _file(path: str, text: str) -> Callable[[FakeNode], None]:
    def write(node: FakeNode) -> None:
        file = node.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def _link(node: FakeNode) -> None:
    (node.root / "nix").symlink_to("/data/nix")


def _pod(node: FakeNode) -> None:
    node.containerd.sandboxes = [("web", "flox")]


@pytest.mark.parametrize(
    ("dress", "check", "state", "says"),
    [
        (_kubelet(), "kubelet-running", "ok", "kubelet"),
        (_kubelet("--cgroup-driver=cgroupfs"), "cgroup-driver", "problem", "the kubelet uses cgroupfs"),
        (_kubelet("--node-labels=flox-runtime=enabled"), "labels", "warning", "flox-runtime=enabled"),
        (_kubelet("--node-labels", "flox.dev/x=y"), "labels", "warning", "flox.dev/x=y"),
        (
            _file("var/lib/kubelet/config.yaml", "a: b\ncgroupDriver: cgroupfs\n"),
            "cgroup-driver",
            "problem",
            "cgroupfs",
        ),
        (_file("etc/kubernetes/kubelet/config.json", '{\n "cgroupDriver": "systemd"}'), "cgroup-driver", "ok", ""),
        (_file("etc/nix/nix.conf", ""), "foreign-nix", "warning", "/etc/nix/nix.conf"),
        (_file("etc/group", "root:x:0:\nnixbld:x:30000:\n"), "foreign-nix", "warning", "nixbld"),
        (_file("etc/flox.toml", "floxhub_token = 'flox_x'\n"), "ignored-settings", "warning", "the pod's own secret"),
        (_file("etc/nix/nix.conf", "# a\nnetrc-file = /x\n"), "ignored-settings", "warning", "nix.netrc"),
        (
            _file("etc/nix/nix.custom.conf", "extra-substituters = https://x\n"),
            "ignored-settings",
            "warning",
            "nix.extra_",
        ),
        (_file("etc/nix/netrc", "machine cache.example.com password x\n"), "ignored-settings", "warning", "nix.netrc"),
        (_file("usr/local/bin/containerd-shim-flox-v2", ""), "foreign-handler", "warning", "containerd-shim-flox-v2"),
        (_file("var/lib/flox-node/receipt.json", "{torn"), "receipt", "problem", "damaged"),
        (_file("opt/flox-node/x", ""), "receipt", "problem", "receipt.json is not"),
        (_file("etc/flox-node/policy.json", '{"inner_runtime": "/x/runc"}'), "inner-runtime", "ok", "/x/runc"),
        (_link, "nix-folder", "problem", "/data/nix"),
        (_pod, "annotations", "warning", "default/web"),
    ],
)
def test_what_a_node_shows_is_found(
    node: FakeNode, dress: Callable[[FakeNode], Any], check: str, state: str, says: str
) -> None:
    dress(node)
    result = _by_id(node)[check]
    assert result.state == state
    assert says in result.cause


def test_failures_of_pods_are_told_from_the_shims_log_with_old_and_torn_lines_left_out(node: FakeNode) -> None:
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat()
    event = {"level": "error", "namespace": "default", "pod": "web", "message": "flox: it says why"}
    lines = [
        '{"torn',
        json.dumps({**event, "time": now}),
        json.dumps({**event, "time": "2020-01-01T00:00:00Z", "pod": "old"}),
    ]
    _file("var/log/flox-node/runtime.jsonl", "\n".join(lines))(node)
    result = _by_id(node)["recent-failures"]
    assert result.state is State.WARNING
    assert result.cause == "default/web: flox: it says why"
