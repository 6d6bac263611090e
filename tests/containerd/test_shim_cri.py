"""The shim behind a real containerd, called as the kubelet does: every kind of container of a Flox pod."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.bed import parity, releases
from tests.bed.cri import CriError
from tests.bed.environment import BUSYBOX, ENVIRONMENT, script
from tests.bed.flox_daemon import CRUN, RUNC, RUNC_1_3, FloxDaemon
from tests.conftest import FULL

HANDLERS = {RUNC: "runc", RUNC_1_3: "runc-1.3", CRUN: "crun"}
ALL = [(release, inner) for release in (*releases.DEFAULT, "2.4") for inner in HANDLERS]
COMBINATIONS = ALL if FULL else [("1.7", RUNC), ("2.1", RUNC_1_3), ("2.1", CRUN)]


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda pair: f"{pair[0]}-{HANDLERS[pair[1]]}")
def started(request: pytest.FixtureRequest, bed: object) -> Iterator[FloxDaemon]:
    """One daemon for each release and runtime behind the shim."""
    release, inner = request.param
    with FloxDaemon(release, inner) as daemon:
        daemon.load_images()
        yield daemon


def inner_of(daemon: FloxDaemon) -> str:
    """What runs behind the shim."""
    return str(json.loads((daemon.root / "etc/flox-node/policy.json").read_text())["inner_runtime"])


@pytest.fixture
def daemon(started: FloxDaemon) -> Iterator[FloxDaemon]:
    started.resolve()
    yield started
    for sandbox in started.cri.sandboxes():
        started.cri.remove_sandbox(sandbox.id)


def test_init_containers_sidecars_and_ephemeral_containers_share_the_pods_environment(daemon: FloxDaemon) -> None:
    cri, pod = daemon.cri, daemon.pod(skip_containers="plain")
    init = cri.run_container(pod, ["hello", "init"], name="init")
    assert cri.wait_exited(init).exit_code == 0
    assert f"hello from {ENVIRONMENT}: init\npid 1 good morning yes\n" in cri.logs(init)
    sidecar = cri.run_container(pod, ["sleep", "600"], name="sidecar")
    main = cri.run_container(pod, ["sh", "-c", "hello main; exec sleep 600"], name="main")
    plain = cri.run_container(pod, ["sleep", "600"], name="plain")
    debug = cri.run_container(pod, ["sh", "-c", "hello $$; exec sleep 600"], name="debugger", target=main)
    for container in (sidecar, main, debug):
        assert cri.exec(container, "sh", "-c", "echo $HOOKED $GREETING").stdout == "yes good morning\n"
    assert cri.exec(plain, "sh", "-c", "echo $HOOKED; ls /nix 2>&1 | wc -l").stdout.split() == ["1"]
    assert "sleep" in cri.exec(debug, "cat", "/proc/1/cmdline").stdout, "it sees the processes of its target"
    assert f"hello from {ENVIRONMENT}: 1\n" not in cri.logs(debug), "and is not their first one"
    for container in (debug, main, sidecar):
        cri.stop(container)
        cri.remove(container)
    cri.remove_sandbox(pod)
    left = {path for path in daemon.state() if not path.endswith(("inner-runtime-version", ".lock"))}
    assert left == set()


def test_a_container_that_is_not_flox_is_as_under_the_runtime_behind_the_handler(daemon: FloxDaemon) -> None:
    """Environment, arguments, mounts, capabilities, seccomp, limits."""
    told = {}
    for handler in ("flox", HANDLERS[inner_of(daemon)]):
        pod = daemon.pod(handler, skip_containers="helper")
        helper = daemon.cri.run_container(pod, ["sh", "-c", "sleep 600; exit"], name="helper", env={"CI": "true"})
        told[handler] = parity.comparable(daemon.cri.exec(helper, "sh", "-c", parity.SCRIPT).stdout)
    ours, theirs = told.values()
    assert ours == theirs
    assert any(line.startswith("CapEff") for line in ours["status"])
    assert "CI=true" in ours["environ"]


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        (["nosuch"], 127, "flox: nosuch: command not found in PATH"),
        (["/etc"], 126, "flox: /etc: cannot be executed: permission denied"),
        ([""], 127, "command not found"),
        (["sh", "-c", "exit 3"], 3, ""),
    ],
)
def test_a_command_ends_with_the_status_that_the_field_expects(
    daemon: FloxDaemon, command: list[str], status: int, text: str
) -> None:
    container = daemon.cri.run_container(daemon.pod(), command)
    assert daemon.cri.wait_exited(container).exit_code == status
    assert text in daemon.cri.logs(container)


def test_an_absolute_command_that_nobody_has_fails_the_start(daemon: FloxDaemon) -> None:
    container = daemon.cri.create_container(daemon.pod(), ["/no/such"])
    with pytest.raises(CriError, match='exec: "/no/such": no such file or directory'):
        daemon.cri.start(container)
    status = daemon.cri.container_status(container)
    assert (status.exit_code, status.reason) == (128, "StartError")


def test_a_pod_without_the_nodes_users_runs_in_its_environment(daemon: FloxDaemon) -> None:
    plain = HANDLERS[inner_of(daemon)]
    if daemon.containerd != "1.7" and plain == "runc":  # containerd 2 asks the runtime whether it has ID-mapped mounts
        for handler in (plain, "flox"):
            with pytest.raises(CriError, match="idmap mounts not supported"):
                daemon.cri.run_container(daemon.pod(handler, host_users=False), ["/bin/sleep", "600"])
        return
    daemon.cri.run_container(daemon.pod(plain, host_users=False), ["/bin/sleep", "600"])
    container = daemon.cri.run_container(
        daemon.pod(host_users=False),
        ["sh", "-c", "hello; cat /proc/self/uid_map; touch $FLOX_ENV_CACHE/x; exec sleep 600"],
    )
    answer = daemon.cri.exec(container, "sh", "-c", "echo $HOOKED; id -u")
    assert answer.stdout == "yes\n0\n", answer.stderr
    assert "1048576" in daemon.cri.logs(container)


SHOWN = """cat /proc/self/mounts; env | sort; tr '\\0' ' ' </proc/1/cmdline; ls -d /.f* /nix
for fd in /proc/1/fd/*; do echo fd $fd $(readlink $fd); done; id; umask; pwd; cat /proc/1/limits
grep -E '^(Cap|Sig|NoNew|Seccomp|Groups|Threads)' /proc/1/status; exit 3"""


def test_a_skipped_container_is_one_of_the_plain_runtime(daemon: FloxDaemon) -> None:
    shown = {}
    for handler in (HANDLERS[inner_of(daemon)], "flox"):
        pod = daemon.pod(handler, skip_containers="m?in")
        container = daemon.cri.run_container(
            pod, ["/bin/sh", "-c", SHOWN], env={"FLOX_ENV": "mine", "BASH_ENV": "/x"}, user=1000, working_dir="/tmp"
        )
        assert daemon.cri.wait_exited(container).exit_code == 3
        shown[handler] = re.sub(r"/snapshots/\d+|[0-9a-f]{64}|[0-9a-f-]{36}|pipe:.\d+", "*", daemon.cri.logs(container))
        daemon.cri.stop_sandbox(pod)
    plain, ours = (sorted(text.splitlines()) for text in shown.values())
    assert ours == plain


def test_a_volume_at_run_is_the_pods_and_one_in_our_place_is_refused(daemon: FloxDaemon) -> None:
    volume = daemon.root / "opt/volume"
    volume.mkdir(exist_ok=True)
    for place in ("/run", "/var/run"):
        container = daemon.cri.run_container(
            daemon.pod(), ["sh", "-c", f"touch {place}/mine; exec sleep 600"], mounts={place: "/opt/volume"}
        )
        assert daemon.cri.exec(container, "sh", "-c", "echo $HOOKED").stdout == "yes\n"
        assert [path.name for path in volume.iterdir()] == ["mine"]
    for place in ("/nix/x", "/.flox-node/x", "/srv/../nix"):
        container = daemon.cri.create_container(daemon.pod(), ["sleep", "600"], mounts={place: "/opt/volume"})
        with pytest.raises(CriError, match=r"flox: the pod mounts a volume at .*: mount it elsewhere"):
            daemon.cri.start(container)


def test_devices_by_cdi_reach_the_container_and_dev_mode_finds_their_libraries(daemon: FloxDaemon) -> None:
    root = daemon.root
    script(
        root / "opt/gpu/ldconfig", f"#!{BUSYBOX}/bin/busybox sh\necho ' libcuda.so.1 (libc6) => /gpu/libcuda.so.1'\n"
    )
    (root / "opt/gpu/libcuda.so.1").write_text("library")
    script(root / "opt/gpu/hook", "#!/bin/sh\ncat >/run/cdi-hook-state\n")
    mount = {"options": ["bind", "ro"]}
    edits = {
        "env": ["GPU=fake"],
        "deviceNodes": [{"path": "/dev/fakegpu0", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3}],
        "mounts": [
            {"hostPath": "/opt/gpu/ldconfig", "containerPath": "/sbin/ldconfig", **mount},
            {"hostPath": "/opt/gpu/libcuda.so.1", "containerPath": "/gpu/libcuda.so.1", **mount},
        ],
        "hooks": [{"hookName": "createRuntime", "path": "/opt/gpu/hook", "args": ["hook"]}],
    }
    spec = {"cdiVersion": "0.5.0", "kind": "flox.test/gpu", "devices": [{"name": "0", "containerEdits": edits}]}
    daemon.write("/etc/cdi/flox.json", json.dumps(spec))
    (root / "run/cdi-hook-state").unlink(missing_ok=True)
    daemon.resolve(mode="dev")
    container = daemon.cri.run_container(
        daemon.pod(activate_mode="dev"),
        ["sh", "-c", "echo $GPU; cat $LD_FLOXLIB_FILES_PATH; ls -l /dev/fakegpu0; sleep 600"],
        annotations={"cdi.k8s.io/test": "flox.test/gpu=0"},
    )
    until = time.monotonic() + 60
    while "fakegpu0" not in daemon.cri.logs(container):
        assert time.monotonic() < until, daemon.cri.logs(container)
        time.sleep(0.05)
    assert "fake\n" in daemon.cri.logs(container)
    assert "library" in daemon.cri.logs(container)
    assert container in (root / "run/cdi-hook-state").read_text()
    exec_ = daemon.cri.exec(container, "sh", "-c", "echo $GPU $LD_FLOXLIB_FILES_PATH $HOOKED")
    assert exec_.stdout == "fake /gpu/libcuda.so.1 yes\n"


def test_what_runs_keeps_its_inner_runtime_when_the_policy_names_another_one_and_containerd_restarts(
    daemon: FloxDaemon,
) -> None:
    inner = inner_of(daemon)
    other = RUNC if inner == CRUN else CRUN
    pod = daemon.pod()
    container = daemon.cri.run_container(pod, ["sleep", "600"])
    try:
        daemon.inner_runtime(other)
        assert daemon.cri.exec(container, "hello", "exec").exit_code == 0
        second = daemon.cri.run_container(pod, ["sleep", "600"], name="second")
        assert daemon.cri.exec(second, "hello", "exec").exit_code == 0
        daemon.restart()
        for each in (container, second):
            assert daemon.cri.exec(each, "hello", "after the restart").exit_code == 0
            daemon.cri.stop(each)
            daemon.cri.remove(each)
        daemon.cri.remove_sandbox(pod)
    finally:
        daemon.inner_runtime(inner)
    assert daemon.cri.containers() == []
    assert daemon.run("ps -e | grep -c '[s]leep'", check=False).stdout.strip() == "0"


def test_no_process_of_ours_stays_while_a_pod_runs(daemon: FloxDaemon) -> None:
    container = daemon.cri.run_container(daemon.pod(), ["sleep", "600"])
    assert daemon.cri.exec(container, "sh", "-c", "echo $HOOKED").stdout == "yes\n", "the activation has ended"
    programs = daemon.run("for p in /proc/[0-9]*; do readlink $p/exe; done", check=False).stdout.split()
    assert [program for program in programs if "flox" in program or program.endswith(("python3", "/nix"))] == []
    assert sum(program.endswith(f"{BUSYBOX}/bin/busybox") for program in programs) == 1, "the command itself"


def test_execs_leave_nothing_behind(daemon: FloxDaemon) -> None:
    container = daemon.cri.run_container(daemon.pod(), ["env", "-i", f"{ENVIRONMENT}/bin/sleep", "600"])
    assert daemon.cri.exec(container, "sh", "-c", "echo $HOOKED").stdout == "yes\n"
    before = daemon.state()
    for _ in range(10):
        assert daemon.cri.exec(container, "sh", "-c", "echo $HOOKED").stdout == "yes\n"
    after = daemon.state()
    grown = {path for path in after if after[path] != before.get(path) and not path.endswith("log.json")}
    assert grown == set()
