"""What a container of a Flox pod has besides its environment: a shell and the usual commands, users, a home, /tmp, the
checkout at /.flox; and the calls of GitLab's runner against an image with no files at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import tomllib
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.bed.environment import ACTIVATIONS, BUSYBOX, ENVIRONMENT, INTERPRETER, script, store_path
from tests.containerd.test_shim_runc import (
    Container,
    Node,
    built,  # noqa: F401 - a fixture
    node,  # noqa: F401 - a fixture
)

TOOLS = store_path("j", "busybox-static")
WITH_BASH = store_path("k", "environment-bash-run")


@pytest.fixture(scope="module")
def tooled(built: Node) -> Node:  # noqa: F811
    """The payload's busybox, as an install leaves it, and an environment with a bash of its own."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    folder = built.path(f"{TOOLS}/bin")
    folder.mkdir(parents=True)
    shutil.copy(busybox, folder / "busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (folder / applet).symlink_to("busybox")
    current = built.path("/opt/flox-node/current/bin/busybox")
    current.parent.mkdir(parents=True)
    current.symlink_to(f"{TOOLS}/bin/busybox")
    bash = built.path(WITH_BASH)
    script(bash / "bin/bash", f"#!{BUSYBOX}/bin/busybox sh\nBASH_VERSION=5.2\n. /dev/stdin\n")
    (bash / "libexec").mkdir()
    (bash / "libexec/flox-activations").symlink_to(f"{ACTIVATIONS}/bin/flox-activations")
    (bash / "activate").symlink_to(f"{INTERPRETER}/activate")
    (bash / "manifest.lock").write_text('{"manifest": {"install": {"bash": {"pkg-path": "bash"}}}}')
    (bash / "requisites.txt").write_text(f"{BUSYBOX}\n{ACTIVATIONS}\n{INTERPRETER}\n")
    return built


@pytest.fixture
def pods(tooled: Node, node: Node) -> Node:  # noqa: F811
    """The node, with the payload's busybox."""
    assert tooled is node
    return node


DETECT = "".join(
    f"{word} [ -x {shell} ]; then\n\texec {shell} \n"
    for word, shell in zip(
        ("if", *("elif",) * 6),
        (
            *("/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash"),
            *("/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh", "/busybox/sh"),
        ),
        strict=True,
    )
) + ("else\n\techo shell not found\n\texit 1\nfi\n\n")
PUBLISHED = {"skip_containers": "init-permissions,helper", "skip_containers_exec": "main", "activate_mode": "run"}


def outside(container: Container, script: str) -> tuple[int, str]:
    """What the runner does to write a file or to cancel: an exec of its detection, with a script on the stdin."""
    file = container.node.dir / f"process-{uuid.uuid4().hex}"
    process = {"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", DETECT], "cwd": "/",
               "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}  # fmt: skip
    file.write_text(json.dumps(process))
    done = subprocess.run(
        [container.node.shim, "--root", container.node.root, "exec", "--process", file, container.id],
        input=script, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def start_with_stdin(container: Container) -> subprocess.Popen[str]:
    """Create and start a container whose stdin stays open; the process holds its write end."""
    arguments = ["--root", str(container.node.root), "--log", str(container.bundle / "log.json"), "--log-format=json"]
    pid_file = container.bundle / "init.pid"
    held = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE, text=True)  # only for its pipe
    assert held.stdin is not None
    other_end = open(f"/proc/self/fd/{held.stdin.fileno()}")  # noqa: SIM115
    with (container.bundle / "output").open("ab") as output, other_end as reader:
        created = subprocess.run(
            [container.node.shim, *arguments, "create", "--bundle", container.bundle, "--pid-file", pid_file,
             container.id],
            stdin=reader, stdout=output, stderr=output, timeout=60, check=False,
        )  # fmt: skip
    assert created.returncode == 0, container.error
    assert container.start() == 0
    return held


def wait_for(file: Path, text: str) -> str:
    until = time.monotonic() + 60
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < until, file.read_text() if file.exists() else f"no {file}"
        time.sleep(0.02)
    return file.read_text()


@pytest.mark.parametrize("environment", [ENVIRONMENT, WITH_BASH], ids=["hello", "bash"])
def test_a_job_of_gitlabs_runner_runs_in_an_image_with_no_files(pods: Node, environment: str) -> None:
    """The attach strategy: scripts are written by exec and started through the stdin of the container's command."""
    pods.resolve(store_path=environment)
    container = pods.pod("sh", "-c", DETECT, flox=PUBLISHED)
    held = start_with_stdin(container)
    try:
        assert outside(container, 'echo "$(id -un) ${FLOX_ENV-outside}"') == (0, "root outside\n")
        step = 'command -v hello && hello job; test -n "$FLOX_ENV" && echo "version ${BASH_VERSION-none}"'
        save = f"set -eu\nmkdir -p /scripts\necho '{step}' > /scripts/step.tmp\nchmod 777 /scripts/step.tmp\n"
        assert outside(container, f"{save}mv /scripts/step.tmp /scripts/step\ntouch /log\n") == (0, "")
        assert held.stdin is not None
        held.stdin.write("sh -c '(. /scripts/step; echo end) 2>&1 | tee -a /log' &\n")
        held.stdin.flush()
        if environment == ENVIRONMENT:
            log = wait_for(container.bundle / "rootfs/log", "end\n")
            assert f"{ENVIRONMENT}/bin/hello" in log
            assert "hello from" in log
        # A cancelled job: find the processes of the step and end them.
        cancel = (
            "for prc in /proc/[0-9]*/cmdline; do printf '%s ' $prc; cat $prc | sed 's/x/x/' | grep -c .; done | "
            "awk 'END {print NR}'"
        )
        status, output = outside(container, cancel)
        assert (status, int(output) > 0) == (0, True)
    finally:
        held.kill()
        held.communicate()


@pytest.mark.parametrize("environment", [ENVIRONMENT, WITH_BASH], ids=["hello", "bash"])
def test_bash_is_the_environments_own(pods: Node, environment: str) -> None:
    pods.resolve(store_path=environment)
    container = pods.pod("true")
    assert container.create() == 0, container.error
    bash = container.bundle / "rootfs/bin/bash"
    assert bash.is_symlink() == (environment == WITH_BASH)
    if environment == WITH_BASH:
        assert bash.readlink() == Path(f"{WITH_BASH}/bin/bash")


CASES = {
    "root": ({"uid": 0, "gid": 0}, "root:/root"),
    "user": ({"uid": 1000, "gid": 2000}, "user:/home/user"),
    "nobody": ({"uid": 65534, "gid": 65534}, "nobody:/home/nobody"),
}


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
@pytest.mark.parametrize("case", CASES)
def test_an_empty_image_has_users_home_tmp_and_commands(pods: Node, case: str, read_only: bool) -> None:
    user, wanted = CASES[case]
    command = (
        'echo "$(/usr/bin/env id -un):$HOME"; touch "$HOME/x" /tmp/x /var/tmp/x "$FLOX_ENV_CACHE/x" && echo written; '
        "ls -ld /tmp | cut -c1-10; echo $FLOX_ENV_CACHE; grep -c : /etc/passwd /etc/group; "
        "for tool in chmod mv cat mkdir rm tee touch sed grep awk find printf sleep kill hostname cut sort tar; do "
        "PATH=/usr/local/bin:/usr/bin:/sbin:/bin command -v $tool >/dev/null || echo no $tool; done; "
        "/bin/echo absolute; ls -a /"
    )
    container = pods.pod("sh", "-c", command, user=user)
    pods.edit(container, root={"path": "rootfs", "readonly": read_only})
    lines = container.run().wait().splitlines()
    assert lines[:4] == [wanted, "written", "drwxrwxrwt", "/.flox/cache"]
    assert "absolute" in lines
    assert not [line for line in lines if line.startswith("no ")]
    written = container.bundle / "rootfs/.flox/cache/x"
    assert written.exists() != read_only, "on the container's own disk layer, unless that is read-only"


def test_what_the_image_has_is_left_as_it_is(pods: Node) -> None:
    container = pods.pod("sh", "-c", "cat /etc/passwd; /bin/sh; stat -c %a /tmp; env cat; /usr/bin/env cat")
    root = container.bundle / "rootfs"
    script(root / "usr/bin/sh", f"#!{BUSYBOX}/bin/busybox sh\necho own shell\n")
    script(root / "usr/bin/cat", f"#!{BUSYBOX}/bin/busybox sh\necho own cat\n")
    (root / "bin").symlink_to("usr/bin")
    (root / "tmp").mkdir(mode=0o700)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/rooms:/bin/sh\n")
    container.run().wait()
    assert not (root / "etc/group").exists()
    assert not (root / "sbin").exists()
    assert (root / "etc/passwd").read_text() == "root:x:0:0::/rooms:/bin/sh\n"
    assert "own shell" in container.output
    assert "\n700\n" in container.output
    assert sorted(path.name for path in (root / "usr/bin").iterdir()) == ["cat", "env", "sh"]


def test_gaps_of_an_image_without_a_shell_are_filled_and_nothing_of_it_is_shadowed(pods: Node) -> None:
    container = pods.pod("sh", "-c", "awk 'BEGIN {print 1 + 1}'")
    root = container.bundle / "rootfs"
    script(root / "usr/bin/ls", "#!/bin/sh\necho own ls\n")
    assert container.run().wait() == "2\n"
    assert (root / "bin/awk").is_symlink()
    assert not (root / "bin/ls").exists()
    assert not (root / "sbin").exists()


def test_an_image_of_one_shell_with_the_commands_in_it_has_them_for_bash_too(pods: Node) -> None:
    pods.resolve(store_path=WITH_BASH)
    container = pods.pod("true")
    root = container.bundle / "rootfs"
    script(root / "bin/sh", f"#!{BUSYBOX}/bin/busybox sh\n. /dev/stdin\n")
    container.run().wait()
    for name in ("chmod", "tee", "awk"):
        assert (root / "bin" / name).is_symlink(), name
    assert not (root / "bin/sh").is_symlink()


def test_a_policy_turns_the_userland_off(pods: Node) -> None:
    pods.policy(inner_runtime=str(pods.dir / "usr/sbin/runc"), pods={"userland": "off"})
    container = pods.pod("sh", "-c", "ls /; echo $HOME")
    assert set(container.run().wait().split()) == {"dev", "nix", "proc", "/"}
    assert not (container.bundle / "rootfs/bin").exists()


@pytest.mark.parametrize("link", ["bin", "etc", "tmp", "root", "home", ".flox", ".flox-node", "usr", "sbin"])
@pytest.mark.parametrize("target", ["/etc", "../../../../../../../../etc", "/proc/self/root/etc"])
def test_symlinks_of_an_image_lead_nowhere_on_the_host(pods: Node, link: str, target: str) -> None:
    container = pods.pod("hello")
    (container.bundle / "rootfs" / link).symlink_to(target)
    watched = [Path("/etc"), container.bundle, pods.dir]
    before = [sorted(path.name for path in folder.iterdir()) for folder in watched]
    container.create()
    after = [sorted(path.name for path in folder.iterdir()) for folder in watched]
    assert after[0] == before[0]
    assert after[2] == before[2]


def test_the_checkout_is_what_flox_pull_leaves(pods: Node) -> None:
    container = pods.pod("hello")
    container.run().wait()
    checkout = container.bundle / "rootfs/.flox"
    assert json.loads((checkout / "env.json").read_text()) == {"name": "hello", "version": 1}
    assert tomllib.loads((checkout / "env/manifest.toml").read_text()) == {
        "version": 1,
        "vars": {"GREETING": "good morning"},
    }
    assert (checkout / "env/manifest.lock").readlink() == Path(f"{ENVIRONMENT}/manifest.lock")
    links = sorted(path.name for path in (checkout / "run").iterdir())
    assert links == ["x86_64-linux.hello-run", "x86_64-linux.hello.run"]


def test_a_volume_in_the_place_of_tmp_or_home_is_the_pods(pods: Node, tmp_path: Path) -> None:
    container = pods.pod("sh", "-c", "touch /tmp/x /root/x; echo $HOME")
    volumes: list[dict[str, Any]] = [
        {"destination": place, "type": "bind", "source": str(tmp_path), "options": ["rbind"]}
        for place in ("/tmp", "/var/tmp", "/root")
    ]
    pods.edit(container, root={"path": "rootfs", "readonly": True}, mounts=[*container.config["mounts"], *volumes])
    assert container.run().wait() == "/root\n"
    assert (tmp_path / "x").exists()


def test_the_project_is_where_the_command_is_started(pods: Node) -> None:
    container = pods.pod("sh", "-c", "echo $FLOX_ENV_PROJECT", cwd="/builds/../work")
    assert container.run().wait() == "/work\n"
