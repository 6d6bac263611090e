"""The shim in front of a real runc, without containerd: bundles as containerd makes them, and a built environment whose
flox-activations is the strict double. Only the Python side is replaced, by a script that gives a prepared answer."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bed import releases
from tests.bed.environment import (
    ACTIVATIONS,
    BUSYBOX,
    ENVIRONMENT,
    INTERPRETER,
    LINK,
    OTHERS,
    RESOLUTION,
    SCRIPTED,
    SINGLE,
    go_build,
    make_store,
    script,
    store_path,
)
from tests.bed.processes import wait_ended

ROOT = Path(__file__).parents[2]
CGROUP = f"flox-shim-test-{os.getpid()}"

# Recorded by the inner runtime's stand-in: what exactly the shim became.
RECORDER = """#!/bin/sh
tr '\\0' '\\n' </proc/$$/cmdline >{to}.argv
tr '\\0' '\\n' </proc/$$/environ | sort >{to}.environ
{{ ulimit -n; ulimit -Hn; umask; pwd; }} >{to}.limits
exit 7
"""

REALISE = """#!/bin/sh
tr '\\0' '\\n' </proc/$$/environ | sort >{dir}/realise.environ
pwd >{dir}/realise.cwd
cat >{dir}/realise.request
. {dir}/realise.sh
"""


@dataclass
class Container:
    """One bundle, and the calls that containerd's shim makes for it."""

    node: Node
    id: str
    bundle: Path

    @property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        return loaded

    @property
    def output(self) -> str:
        return (self.bundle / "output").read_text()

    @property
    def error(self) -> str:
        """What containerd would show: the last error line of the runtime's log."""
        lines = [json.loads(line) for line in (self.bundle / "log.json").read_text().splitlines()]
        message: str = [line for line in lines if line["level"] == "error"][-1]["msg"]
        return message

    @property
    def pid(self) -> int:
        return int((self.bundle / "init.pid").read_text())

    def call(self, *arguments: str, **options: Any) -> int:
        glob = ["--root", str(self.node.root), "--log", str(self.bundle / "log.json"), "--log-format=json"]
        with (self.bundle / "output").open("ab") as output, (self.bundle / "stderr").open("ab") as stderr:
            return subprocess.run(
                [str(self.node.shim), *glob, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=stderr,
                timeout=300, check=False, **options,  # only for what hangs
            ).returncode  # fmt: skip

    def create(self) -> int:
        pid_file = str(self.bundle / "init.pid")
        return self.call("create", "--bundle", str(self.bundle), "--pid-file", pid_file, self.id)

    def start(self) -> int:
        return self.call("start", self.id)

    def run(self) -> Container:
        assert self.create() == 0, self.error
        assert self.start() == 0, self.error
        return self

    def wait(self) -> str:
        """The output, once the first process has ended."""
        assert wait_ended(self.pid, 60), "the first process does not end"
        print((self.bundle / "stderr").read_text())  # pytest shows it with a failure
        return self.output

    def enter(self) -> Container:
        """Wait until the hook has run and the command is the first process."""
        until = time.monotonic() + 60
        environ = b""
        while b"\0FLOX_ENV=" not in b"\0" + environ:
            # The double of flox-activations has more than one thread; see shim/main.go.
            with contextlib.suppress(ProcessLookupError):
                environ = Path(f"/proc/{self.pid}/environ").read_bytes()
            assert time.monotonic() < until, "the first process does not enter the environment"
            time.sleep(0.01)
        return self

    def exec(self, *args: str, env: list[str] | None = None, uid: int = 0) -> tuple[int, str, dict[str, Any]]:
        """Execute a command as containerd does: with the environment of the configuration that *it* knows."""
        process_file = self.node.dir / f"process-{uuid.uuid4().hex}"
        configured = ["PATH=/usr/bin:/bin", "CONFIGURED=1", "GREETING=from the pod", "FLOX_ENV_CACHE=/stale"]
        user = {"uid": uid, "gid": uid}
        process = {"user": user, "args": list(args), "env": configured + (env or []), "cwd": "/"}
        process_file.write_text(json.dumps(process))
        process_file.chmod(0o600)
        before = len(self.output)
        status = self.call("exec", "--process", str(process_file), self.id)
        assert process_file.stat().st_mode & 0o777 == 0o600
        return status, self.output[before:], json.loads(process_file.read_text())


@dataclass
class Node:
    """A node's folders below a prefix that only this build of the shim knows."""

    dir: Path
    shim: Path
    root: Path
    containers: list[Container] = field(default_factory=list)

    def path(self, absolute: str) -> Path:
        return self.dir / absolute.lstrip("/")

    def policy(self, **keys: Any) -> None:
        path = self.path("/etc/flox-node/policy.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"schema_version": 1, **keys}))

    def answer(self, shell: str) -> None:
        """What the Python side does, as shell commands."""
        self.path("/realise.sh").write_text(shell)

    def resolve(self, **changes: Any) -> None:
        answer = {"schema_version": 1, "ok": True, "resolution": {**RESOLUTION, **changes}}
        self.answer(f"cat <<'END'\n{json.dumps(answer)}\nEND\n")

    def bundle(self, kind: str, sandbox: str, args: list[str], flox: dict[str, str], **process: Any) -> Container:
        container_id = sandbox if kind == "sandbox" else uuid.uuid4().hex
        bundle = self.dir / "bundles" / container_id
        (bundle / "rootfs").mkdir(parents=True)
        annotations = {
            "io.kubernetes.cri.container-type": kind,
            "io.kubernetes.cri.sandbox-id": sandbox,
            "io.kubernetes.cri.sandbox-name": "web",
            "io.kubernetes.cri.sandbox-namespace": "default",
            "io.kubernetes.cri.sandbox-uid": "b9a1e0d4",
            **flox,
        }
        if kind == "container":
            annotations["io.kubernetes.cri.container-name"] = "main"
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/usr/bin:/bin", "CONFIGURED=1", "GREETING=from the pod", "FLOX_ENV_CACHE=/stale"],
                "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
                **process,
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "linux": {
                "cgroupsPath": f"/{CGROUP}/{container_id}",
                "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
            },
            "annotations": annotations,
        }
        (bundle / "config.json").write_text(json.dumps(config))
        container = Container(self, container_id, bundle)
        self.containers.append(container)
        return container

    def sandbox(self, **flox: str) -> Container:
        """A pod's sandbox; `environment="demo/hello"` is the annotation flox.dev/environment."""
        annotations = {f"flox.dev/{name.replace('_', '-')}": value for name, value in flox.items()}
        sandbox = self.bundle("sandbox", uuid.uuid4().hex, ["/pause", "sleep", "600"], annotations)
        pause = sandbox.bundle / "rootfs/pause"
        shutil.copy(shutil.which("busybox") or "", pause)
        return sandbox

    def container(self, sandbox: Container, *args: str, **process: Any) -> Container:
        flox = {name: value for name, value in sandbox.config["annotations"].items() if name.startswith("flox.dev/")}
        return self.bundle("container", sandbox.id, list(args), flox, **process)

    def pod(self, *args: str, flox: dict[str, str] | None = None, **process: Any) -> Container:
        """A container of a pod whose sandbox has been created."""
        sandbox = self.sandbox(environment="demo/hello", **(flox or {}))
        assert sandbox.create() == 0, sandbox.error
        return self.container(sandbox, *args, **process)

    def edit(self, container: Container, **changes: Any) -> None:
        (container.bundle / "config.json").write_text(json.dumps({**container.config, **changes}))

    def close(self) -> None:
        for container in self.containers:
            subprocess.run([releases.runc(), "--root", str(self.root), "delete", "--force", container.id], check=False)
        for controller in Path("/sys/fs/cgroup").iterdir():
            parent = controller / CGROUP
            if parent.is_dir():
                parent.rmdir()


def listed(node: Node, command: str) -> list[str]:
    """The lines that a shell in a new container prints, without what the hook says."""
    return node.pod("sh", "-c", command).run().wait().splitlines()


def make_node(directory: Path) -> Node:
    """A node whose store holds what `make_store` makes, with a shim that was built for this folder."""
    go_build(ROOT / "shim", directory / "flox-runtime", f"-X flox.dev/flox-node/shim/internal/node.prefix={directory}")
    make_store(directory / "nix", directory)
    (directory / "usr/sbin").mkdir(parents=True)
    (directory / "usr/sbin/runc").symlink_to(releases.runc())
    script(directory / "opt/flox-node/bin/flox-node-realise", REALISE.format(dir=directory))
    (directory / "var/log/flox-node").mkdir(parents=True)
    return Node(directory, directory / "flox-runtime", directory / "runc")


@pytest.fixture(scope="module")
def built(bed: Path, tmp_path_factory: pytest.TempPathFactory) -> Node:
    return make_node(tmp_path_factory.mktemp("node"))


@pytest.fixture
def node(built: Node) -> Iterator[Node]:
    built.policy(inner_runtime=str(releases.runc()))
    built.resolve()
    yield built
    built.close()
    built.containers.clear()
    shutil.rmtree(built.dir / "bundles", ignore_errors=True)


def test_a_command_that_exists_only_in_the_environment_runs_in_an_image_with_no_files(node: Node) -> None:
    output = node.pod("hello", "a b", "$HOME;", '"').run().wait()
    assert f'hello from {ENVIRONMENT}: a b $HOME; "' in output
    assert "pid 1 good morning yes" in output, "the command is the first process, after [vars] and hook"


def test_the_container_sees_its_closure_and_nothing_else_of_the_store(node: Node) -> None:
    names = [Path(path).name for path in (ENVIRONMENT, BUSYBOX, ACTIVATIONS, INTERPRETER, SINGLE, LINK)]
    assert listed(node, "ls -A /nix") == ["store"]
    assert listed(node, "ls -A /nix/store") == sorted(names)
    assert listed(node, f"cat {SINGLE} {LINK}") == ["a store path may be a file"] * 2
    [link] = listed(node, "ls /.flox/run/*.run/bin/hello")
    assert link.startswith("/.flox/run/x86_64-linux.hello.run/")


def test_a_policy_may_show_the_whole_store(node: Node) -> None:
    node.policy(inner_runtime=str(releases.runc()), pods={"view": "store"})
    assert Path(OTHERS).name in listed(node, "ls -A /nix/store")
    assert listed(node, "touch /nix/store/x || echo refused")[-1] == "refused"


def test_nothing_in_nix_can_be_written(node: Node) -> None:
    places = ("/nix/x", "/nix/store/x", f"{ENVIRONMENT}/x", SINGLE)
    command = "; ".join(f"touch {place} 2>/dev/null || echo refused" for place in places)
    assert listed(node, command) == ["refused"] * len(places)


def test_no_mount_of_a_container_is_left_on_the_host_or_reaches_it(node: Node) -> None:
    before = Path("/proc/self/mountinfo").read_text().count(str(node.dir))
    container = node.pod("sleep", "600").run().enter()
    assert Path("/proc/self/mountinfo").read_text().count(str(node.dir)) == before
    seen = Path(f"/proc/{container.pid}/mountinfo").read_text()
    assert seen.count(" /nix/store/") == 5, "one for each store path that is no symlink"
    assert all("shared:" not in line and "master:" not in line for line in seen.splitlines() if " /nix" in line)


def test_an_unprivileged_user_on_a_read_only_root_has_home_cache_and_environment(node: Node) -> None:
    container = node.pod("sh", "-c", 'id -u; echo "$HOME $PATH"; touch $FLOX_ENV_CACHE/x && echo cached',
                         user={"uid": 1000, "gid": 1000})  # fmt: skip
    node.edit(container, root={"path": "rootfs", "readonly": True})
    output = container.run().wait()
    assert output.splitlines() == ["1000", f"/home/user {ENVIRONMENT}/bin:/usr/bin:/bin", "cached"]


def test_an_executed_command_has_the_environment_of_the_first_process(node: Node) -> None:
    container = node.pod("sleep", "600").run().enter()
    command = 'echo "$FLOX_ENV_DESCRIPTION|$GREETING|$HOOKED|$FLOX_ENV_CACHE|$EXPLICIT"'
    status, output, _ = container.exec("sh", "-c", command, env=["EXPLICIT=1"])
    assert (status, output) == (0, "demo/hello|good morning|yes|/.flox/cache|1\n")
    status, output, _ = container.exec("hello", "again", env=["GREETING=explicit"])
    assert status == 0
    assert "explicit yes" in output
    assert container.exec("sh", "-c", "exit 7")[0] == 7


@pytest.mark.parametrize(
    "command",
    [
        ["env", "-i", f"{ENVIRONMENT}/bin/sleep", "600"],
        ["sh", "-c", "unset FLOX_ENV GREETING HOOKED; exec sleep 600"],
        [f"{BUSYBOX}/bin/busybox", "chroot", "/nix", f"{BUSYBOX}/bin/busybox".removeprefix("/nix"), "sleep", "600"],
    ],
    ids=["env -i", "unset", "chroot"],
)
def test_an_exec_has_the_environment_whatever_the_program_did_and_leaves_nothing(
    node: Node, command: list[str]
) -> None:
    caps = {kind: ["CAP_SYS_CHROOT"] for kind in ("bounding", "effective", "permitted")}
    container = node.pod(*command, capabilities=caps).run()
    # Until no word of ours, nor of what clears the variables, is left in the first process' command line.
    passing = (b"/.flox-node/launch", b"activate", b"-i", b"chroot", b"-c")
    until = time.monotonic() + 60
    while set(passing) & set(words := Path(f"/proc/{container.pid}/cmdline").read_bytes().split(b"\0")):
        assert time.monotonic() < until, f"the command is not reached: {words}"
        time.sleep(0.01)
    files = sorted((container.bundle).iterdir())
    for _ in range(3):
        status, output, process = container.exec("true")
        assert status == 0, output
        env = dict(entry.split("=", 1) for entry in process["env"])
        assert (env["HOOKED"], env["GREETING"], env["CONFIGURED"]) == ("yes", "good morning", "1")
        assert env["PATH"] == f"{ENVIRONMENT}/bin:/usr/bin:/bin"
    assert sorted((container.bundle).iterdir()) == files


def test_what_changes_an_activation_reaches_the_command_alone_and_the_pods_own_names_stay(node: Node) -> None:
    theirs = ["ENV=/nonesuch", "SHELLOPTS=xtrace", "RUST_LOG=debug", "FLOX_ENVIRONMENT=prod", "_FLOX_APP=y"]
    container = node.pod("env", env=["PATH=/bin", *theirs, "FLOX_ENV_CACHE=/stale"])
    lines = container.run().wait().splitlines()
    assert set(theirs) <= set(lines)
    assert "FLOX_ENV_CACHE=/.flox/cache" in lines
    assert not [line for line in lines if line.startswith("FLOX_NODE_")]
    log = node.path("/var/log/flox-node/runtime.jsonl").read_text()
    assert "the container's variables FLOX_ENV_CACHE were dropped: Flox sets them itself" in log


def test_dev_mode_finds_the_gpu_libraries_of_the_node_and_run_mode_does_not_look(node: Node) -> None:
    for mode, wanted in {"dev": "/usr/lib/libcuda.so.1", "run": ""}.items():
        node.resolve(mode=mode)
        container = node.pod("sh", "-c", 'echo "<$LD_FLOXLIB_FILES_PATH>"', flox={"activate_mode": mode})
        script(
            container.bundle / "rootfs/sbin/ldconfig",
            f"#!{BUSYBOX}/bin/busybox sh\necho '\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/libcuda.so.1'\n",
        )
        assert container.run().wait() == f"<{wanted}>\n"


def test_an_absolute_command_that_nobody_has_is_an_error_of_the_start(node: Node) -> None:
    container = node.pod("/no/such", "x")
    assert container.create() == 1
    assert container.error.startswith('flox: exec: "/no/such": no such file or directory')
    assert not node.path(f"/run/flox-node/containers/{container.id}.json").exists()


def test_the_command_is_started_with_nothing_of_ours_left(node: Node) -> None:
    command = (
        'echo "$$ $0"; tr "\\0" "|" </proc/1/cmdline; echo; ls -l /proc/1/fd | grep -c flox-node; umask; kill -l TERM'
    )
    output = node.pod(f"{BUSYBOX}/bin/busybox", "sh", "-c", command, "zero", "").run().wait()
    lines = output.splitlines()
    assert lines[0] == "1 zero"
    assert lines[1].startswith(f"{BUSYBOX}/bin/busybox|sh|-c|")
    assert lines[1].endswith("|zero||")
    assert lines[2:4] == ["0", "0022"]


def test_an_exec_of_a_listed_container_stays_outside_the_environment(node: Node) -> None:
    container = node.pod("sleep", "600", flox={"skip_containers_exec": "other, main"}).run()
    status, _, process = container.exec("hello")
    assert status != 0
    assert "FLOX_ENV=" not in "".join(process["env"])
    assert process["args"] == ["hello"]


def test_a_probe_while_the_hook_still_runs_is_answered_within_a_second(node: Node) -> None:
    hooked = node.pod("sleep", "600").run().enter()
    hooking = node.pod("sleep", "600", env=["PATH=/bin", "HOOK_SECONDS=600"]).run()

    def took(container: Container) -> float:
        began = time.monotonic()
        status, output, _ = container.exec("hello", "early")
        assert (status, f"hello from {ENVIRONMENT}: early" in output) == (0, True)
        return time.monotonic() - began

    # What it would wait for is beside what an exec takes anyway, which is anything on a busy machine.
    assert any(took(hooking) < took(hooked) + 0.9 for _ in range(5))


def test_a_listed_container_is_left_as_it_is(node: Node) -> None:
    container = node.pod("/bin/true", flox={"skip_containers": "init, main,nope"})
    before = (container.bundle / "config.json").read_bytes()
    container.create()
    assert (container.bundle / "config.json").read_bytes() == before
    assert not node.path(f"/run/flox-node/containers/{container.id}.json").exists()


def test_an_environment_without_flox_activations_starts_by_its_script(node: Node) -> None:
    node.resolve(store_path=SCRIPTED)
    output = node.pod("hello", "scripted").run().wait()
    assert f"hello from {SCRIPTED}: scripted" in output
    assert "pid 1 good morning yes" in output


def test_a_command_that_does_not_exist_says_so(node: Node) -> None:
    container = node.pod("nonesuch").run()
    container.wait()
    assert "nonesuch: command not found" in (container.bundle / "stderr").read_text()


@pytest.mark.parametrize(
    ("flox", "text"),
    [
        ({}, "no annotation flox.dev/environment: add for example"),
        ({"environment": "hello"}, "names no owner; the right form is owner/name or owner/name:3"),
        ({"environment": "demo/hello@2"}, "a generation is written with a colon, demo/hello:2"),
        ({"environment": "demo/hello:0"}, "positive number"),
        ({"environment": "-f/../../etc"}, "begin with a letter or a digit"),
        ({"environment": "demo/hello", "activate_mode": "build"}, "it is `run` or `dev`"),
        ({"environment": "demo/hello", "nix_mutable": "yes"}, "it is `true` or `false`"),
    ],
)
def test_a_wrong_annotation_fails_the_first_container_with_a_text_that_names_the_remedy(
    node: Node, flox: dict[str, str], text: str
) -> None:
    node.path("/realise.request").unlink(missing_ok=True)
    sandbox = node.sandbox(**flox)
    assert sandbox.create() == 0, "the kubelet would try again, and nobody would be told"
    container = node.container(sandbox, "hello")
    assert container.create() == 1
    assert container.error.startswith("flox: ")
    assert text in container.error
    assert not node.path("/realise.request").exists(), "nothing is asked for"


def test_the_python_side_gets_the_question_and_an_empty_environment(node: Node) -> None:
    sandbox = node.sandbox(environment="demo/hello:3", activate_mode="run")
    assert sandbox.create() == 0, sandbox.error
    request = json.loads(node.path("/realise.request").read_text())
    assert request == {
        "schema_version": 2,
        "reference": "demo/hello:3",
        "mode": "run",
        "pod": {"namespace": "default", "name": "web", "uid": "b9a1e0d4", "sandbox_id": sandbox.id},
    }
    names = {line.partition("=")[0] for line in node.path("/realise.environ").read_text().split()}
    assert names == {"PATH", "LC_ALL"}
    assert node.path("/realise.cwd").read_text() == "/\n"


def test_the_reason_of_the_python_side_reaches_the_log(node: Node) -> None:
    answer = {"schema_version": 1, "ok": False, "code": "access-denied", "message": "environment demo/hello: refused"}
    node.answer(f"echo '{json.dumps(answer)}'; exit 1\n")
    sandbox = node.sandbox(environment="demo/hello")
    assert sandbox.create() == 1
    assert sandbox.error == "flox: environment demo/hello: refused (code access-denied)"
    assert not list(node.path("/run/flox-node/pods").glob(f"{sandbox.id}*"))


def test_a_crash_of_the_python_side_is_told_without_its_secrets(node: Node) -> None:
    log = node.path("/var/log/flox-node/runtime.jsonl")
    node.answer("echo 'Boom: cannot use flox_pat_s3cret there' >&2; exit 3\n")
    sandbox = node.sandbox(environment="demo/hello")
    assert sandbox.create() == 1
    assert "gave no usable answer (exit status 3, code bug)" in sandbox.error
    last = json.loads(log.read_text().splitlines()[-1])
    assert "Boom: cannot use (removed) there" in last["message"]
    assert "s3cret" not in log.read_text() + sandbox.error


@pytest.mark.parametrize(
    "changes",
    [{"environment": "demo/other"}, {"mode": "dev"}, {"store_path": "/etc"},
     {"store_path": store_path("j", "missing")}],
)  # fmt: skip
def test_an_answer_that_cannot_be_right_is_refused_and_leaves_nothing(node: Node, changes: dict[str, str]) -> None:
    node.resolve(**changes)
    sandbox = node.sandbox(environment="demo/hello")
    assert sandbox.create() == 1
    assert "flox: " in sandbox.error
    assert not node.path(f"/run/flox-node/pods/{sandbox.id}.json").exists()
    assert not node.path(f"/nix/var/nix/gcroots/flox-node/pod-{sandbox.id}").is_symlink()


def test_a_slow_environment_ends_at_the_deadline_with_its_whole_process_group(node: Node) -> None:
    node.policy(inner_runtime=str(releases.runc()), realise={"wait_s": 3})
    node.answer(f"trap '' TERM; sleep 600 & echo $! >{node.dir}/sleeper; while :; do wait; done\n")
    sandbox = node.sandbox(environment="demo/hello:2")
    assert sandbox.create() == 1  # within the call's limit, and not when the sleeper ends
    assert "environment demo/hello, generation 2, was not ready within 3s" in sandbox.error
    assert "timeout" in sandbox.error
    sleeper = int(node.path("/sleeper").read_text())
    if not wait_ended(sleeper, 60):
        os.kill(sleeper, signal.SIGKILL)
        pytest.fail("a process of the Python side outlived the deadline")


def test_a_sandbox_holds_its_environment_from_create_to_delete(node: Node) -> None:
    container = node.pod("sleep", "600").run()
    sandbox = node.containers[0]
    record = node.path(f"/run/flox-node/pods/{sandbox.id}.json")
    root = node.path(f"/nix/var/nix/gcroots/flox-node/pod-{sandbox.id}")
    assert json.loads(record.read_text())["resolution"] == RESOLUTION
    assert record.stat().st_mode & 0o777 == 0o600
    assert root.readlink() == Path(ENVIRONMENT)
    own = node.path(f"/run/flox-node/containers/{container.id}.json")
    assert container.call("delete", container.id) != 0
    assert own.exists(), "runc refuses to delete a running container, so its record stays"
    assert container.call("delete", "--force", container.id) == 0
    assert not own.exists()
    assert record.exists()
    assert sandbox.call("delete", "--force", sandbox.id) == 0
    assert not record.exists()
    assert not root.is_symlink()


def test_a_container_without_a_sandbox_of_ours_is_refused_with_a_remedy(node: Node) -> None:
    sandbox = node.sandbox(environment="demo/hello")
    container = node.container(sandbox, "hello")
    assert container.create() == 1
    assert "no record of the pod's environment" in container.error
    assert "delete the pod" in container.error


def test_an_image_with_its_own_nix_keeps_it_beside_the_closure(node: Node) -> None:
    own = store_path("k", "of-the-image")
    container = node.pod(
        "sh", "-c", f"cat {own}/file {SINGLE}; ls -A /nix/store; touch {own}/x {ENVIRONMENT}/x; ls {own}"
    )
    rootfs = container.bundle / "rootfs"
    (rootfs / own[1:]).mkdir(parents=True)
    (rootfs / own[1:] / "file").write_text("the image's own\n")
    (rootfs / BUSYBOX[1:] / "bin").mkdir(parents=True)  # the same path as in the closure: the node's is on top
    lines = container.run().wait().splitlines()
    assert lines[:2] == ["the image's own", "a store path may be a file"]
    paths = (ENVIRONMENT, BUSYBOX, ACTIVATIONS, INTERPRETER, SINGLE, LINK, own)
    assert lines[2:-2] == sorted(Path(path).name for path in paths)
    assert lines[-2:] == ["file", "x"], "the image's part stays writable"
    assert not node.path(f"{ENVIRONMENT}/x").exists()


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_a_nix_that_is_no_folder_is_refused_and_no_symlink_is_followed(node: Node, kind: str) -> None:
    container = node.pod("hello")
    nix = container.bundle / "rootfs/nix"
    if kind == "symlink":
        nix.symlink_to(node.dir / "empty")
        (node.dir / "empty").mkdir(exist_ok=True)
    else:
        nix.touch()
    assert container.create() == 1
    assert "the image's /nix cannot be used: it is no folder" in container.error
    assert not (container.bundle / "flox-ctx.json").exists()


@pytest.mark.parametrize("place", ["nix/store", BUSYBOX[1:], SINGLE[1:]])
def test_no_symlink_in_an_images_store_is_followed(node: Node, place: str) -> None:
    container = node.pod("hello")
    link = container.bundle / "rootfs" / place
    link.parent.mkdir(parents=True, exist_ok=True)
    (container.bundle / "rootfs/nix/x").touch()
    elsewhere = node.dir / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    assert container.create() != 0
    assert f"{elsewhere}" not in Path("/proc/self/mountinfo").read_text()
    assert list(elsewhere.iterdir()) == []


def test_symlinks_of_an_image_do_not_move_our_mounts_onto_the_host(node: Node) -> None:
    container = node.pod("sh", "-c", "ls /.flox-node /.flox/run")
    (container.bundle / "rootfs/run").symlink_to("/etc")
    (container.bundle / "rootfs/.flox").symlink_to("/etc")
    before = sorted(os.listdir("/etc"))
    output = container.run().wait()
    assert "ctx.json" in output
    assert sorted(os.listdir("/etc")) == before


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        ({"destination": "/nix/store"}, 'mounts a volume at "/nix/store"'),
        ({"destination": "/a/../nix"}, "mount it elsewhere"),
        ({"destination": "/.flox-node/cache"}, "mount it elsewhere"),
        ({"destination": "/var/data"}, "which is /nix/store in this container"),
        ({"destination": "/", "options": ["rbind", "rshared"]}, "the environment's /nix would lie in it"),
    ],
)
def test_a_volume_in_the_environments_place_is_refused(node: Node, mount: dict[str, Any], text: str) -> None:
    container = node.pod("hello")
    (container.bundle / "rootfs/var").symlink_to("/lib/../srv")
    (container.bundle / "rootfs/srv").mkdir()
    (container.bundle / "rootfs/srv/data").symlink_to("../../../nix/store")
    mounts = [*container.config["mounts"], {"type": "bind", "source": "/tmp", **mount}]
    node.edit(container, mounts=mounts)
    assert container.create() == 1
    assert text in container.error


@pytest.mark.parametrize(
    ("place", "options"),
    [("/run", ["rbind", "ro"]), ("/var/run", ["rbind", "rshared"]), ("/run", ["rbind", "rshared"])],
)
def test_a_volume_at_run_is_the_pods_alone_and_nothing_of_ours_reaches_the_host(
    node: Node, tmp_path: Path, place: str, options: list[str]
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "shim-test", str(tmp_path)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(tmp_path)], check=True)
        (tmp_path / "theirs").touch()
        container = node.pod("sh", "-c", "ls /run; sleep 600")
        (container.bundle / "rootfs/var").mkdir()
        (container.bundle / "rootfs/var/run").symlink_to("/run")
        mount = {"destination": place, "type": "bind", "source": str(tmp_path), "options": options}
        linux = {**container.config["linux"], "rootfsPropagation": "rshared"}
        node.edit(container, mounts=[*container.config["mounts"], mount], linux=linux)
        container.run().enter()
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert [where for where in mounted if where.startswith((str(tmp_path), str(container.bundle)))] == [
            str(tmp_path)
        ]
        assert os.listdir(tmp_path) == ["theirs"]
        assert container.exec("sh", "-c", "ls /run >/dev/null; echo hooked: $HOOKED")[0] == 0
        assert sorted(container.output.splitlines()) == ["hooked: yes", "theirs"]
    finally:
        node.close()
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_fields_that_we_do_not_know_survive_the_rewriting(node: Node) -> None:
    container = node.pod("hello")
    before = container.config
    later = {"number": 9007199254740993, "text": "<&>\u2028"}
    before["process"]["later"] = later
    before["mounts"][0]["later"] = later
    node.edit(container, process=before["process"], mounts=before["mounts"], later=later)
    container.create()
    after = container.config
    assert after["later"] == after["process"]["later"] == after["mounts"][0]["later"] == later
    for name in ("ociVersion", "root", "linux", "annotations"):
        assert after[name] == before[name]
    assert '"number":9007199254740993' in (container.bundle / "config.json").read_text()


@pytest.mark.parametrize("command", ["features", "kill", "state", "run", "start", "delete", "exec"])
def test_every_other_call_becomes_the_inner_runtime_with_the_same_arguments_and_environment(
    node: Node, command: str
) -> None:
    recorder = node.dir / "recorder"
    script(recorder, RECORDER.format(to=node.dir / "seen"))
    node.policy(inner_runtime=str(recorder))
    environment = {
        "LD_LIBRARY_PATH": "/opt/containerd/lib:",
        "EMPTY": "",
        "TTRPC_ADDRESS": "x",
        "PATH": os.environ["PATH"],
    }
    arguments = ["--root", "/r", "--systemd-cgroup", "--log=/dev/null", command, "--all", "id", "9"]

    def inherit() -> None:
        os.umask(0o137)
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))

    done = subprocess.run([node.shim, *arguments], env=environment, preexec_fn=inherit, cwd="/usr", check=False)
    assert done.returncode == 7
    argv = node.path("/seen.argv").read_text().splitlines()
    assert argv[1:] == [str(recorder), *arguments]
    assert node.path("/seen.environ").read_text().split() == sorted(f"{k}={v}" for k, v in environment.items())
    assert node.path("/seen.limits").read_text().split() == ["512", "1024", "0137", "/usr"]


def test_the_inner_runtime_ends_with_who_called_it(node: Node) -> None:
    """containerd's shim asks for a signal at its own death. The kernel keeps it for a thread: it is the first one."""
    recorder = node.dir / "signalled"
    script(
        recorder,
        f"#!{sys.executable}\n"
        "import ctypes, signal, sys\n"
        "value = ctypes.c_int()\n"
        "ctypes.CDLL(None).prctl(2, ctypes.byref(value))  # PR_GET_PDEATHSIG\n"
        "sys.exit(value.value)\n",
    )
    node.policy(inner_runtime=str(recorder))

    def ask() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    statuses = [
        subprocess.run([node.shim, "--root", "/r", "kill", "id", "9"], preexec_fn=ask, check=False).returncode
        for _ in range(20)
    ]
    assert set(statuses) == {signal.SIGKILL}


def test_an_inner_runtime_that_is_the_shim_itself_is_refused(node: Node) -> None:
    link = node.dir / "runc-link"
    link.unlink(missing_ok=True)
    link.symlink_to(node.shim)
    node.policy(inner_runtime=str(link))
    container = node.bundle("other", uuid.uuid4().hex, ["/bin/true"], {})
    assert container.create() == 1
    assert "it is flox-runtime itself: set `inner_runtime` in the policy" in container.error


def test_a_damaged_policy_stops_new_containers_and_not_the_removal_of_old_ones(node: Node) -> None:
    container = node.pod("sleep", "600").run()
    node.path("/etc/flox-node/policy.json").write_text("{")
    another = node.bundle("other", uuid.uuid4().hex, ["/bin/true"], {})
    assert another.create() == 1
    assert "policy.json is damaged" in another.error
    assert container.exec("hello")[0] == 0
    assert container.call("kill", container.id, "9") == 0
    container.wait()
    assert container.call("delete", container.id) == 0


def test_an_error_is_also_on_stderr_and_in_text_form_when_the_caller_wants_that(node: Node) -> None:
    sandbox = node.sandbox()
    assert sandbox.create() == 0
    sandbox = node.container(sandbox, "hello")
    log = sandbox.bundle / "text.log"
    done = subprocess.run(
        [node.shim, "--log", str(log), "create", "--bundle", str(sandbox.bundle), sandbox.id],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("flox: the pod has no annotation flox.dev/environment")
    assert ' level=error msg="flox: the pod has no annotation' in log.read_text()
