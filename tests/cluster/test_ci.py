"""CI systems beside GitLab's: each one's pod and calls, as far as a runtime meets them, in an image with no files.

Their own programs are played by a static busybox, as static as theirs, that an init container copies into a volume.
"""

from collections.abc import Callable, Generator, Sequence

import pytest

from tests.bed.images import BUSYBOX
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.objects import Object
from tests.conftest import FULL

pytestmark = pytest.mark.skipif(not FULL, reason="part of make test-full")
EMPTY = "flox/empty:1.0.0"
BASH = 'words=(a "b c"); [[ ${#words[@]} == 2 ]] && hello && command -v hello'


@pytest.fixture(scope="module", autouse=True)
def flox(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[FloxCluster]:
    with FloxCluster.installed(cluster) as installed:
        yield installed


def ci_pod(
    name: str,
    *containers: Object,
    only: str,
    inits: Sequence[Object] = (),
    volumes: Sequence[str] = (),
    **annotations: str,
) -> Object:
    """A pod of the class `flox` whose containers all have these volumes, at the path /NAME with dots for slashes."""
    mounts = [
        {"name": volume.strip("_").replace(".", "-"), "mountPath": "/" + volume.replace(".", "/")} for volume in volumes
    ]
    chosen = {"flox.dev/environment": "ci/tools", "flox.dev/only-containers": only, **annotations}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": chosen},
        "spec": {
            "restartPolicy": "Never",
            "runtimeClassName": "flox",
            "terminationGracePeriodSeconds": 1,
            "initContainers": [{**each, "volumeMounts": mounts} for each in inits],
            "containers": [{**each, "volumeMounts": mounts} for each in containers],
            "volumes": [{"name": mount["name"], "emptyDir": {}} for mount in mounts],
        },
    }


def copied(name: str, folder: str) -> Object:
    """The init container that brings the system's own program."""
    copy = f"/bin/busybox cp /bin/busybox {folder}/busybox"
    return {"name": name, "image": BUSYBOX, "command": ["sh", "-c", copy]}


def ended(cluster: Cluster, name: str, container: str) -> str:
    """What a container printed, once it ended with 0."""

    def code() -> int | None:
        for status in cluster.get("pod", name)["status"].get("containerStatuses", []):
            if status["name"] == container and "terminated" in status["state"]:
                return int(status["state"]["terminated"]["exitCode"])
        return None

    cluster.wait_until(lambda: code() is not None, 60, f"{container} of {name} has ended")
    log = cluster.kubectl("logs", name, f"--container={container}")
    assert code() == 0, log
    return log


def test_tekton(cluster: Cluster, applied: Callable[..., None]) -> None:
    """`prepare` copies the entrypoint, `place-scripts` writes the script, and the step waits for its turn."""
    script = "/tekton/scripts/script-0-x"
    text = f"#!/usr/bin/env bash\nset -e\n{BASH}"
    place = f"cat > {script} <<'E'\n{text}\nE\n/bin/busybox chmod 755 {script}; echo READY > /tekton/run/ready"
    wait = 'until [ -s /tekton/run/ready ]; do sleep 0.1; done; "$@"; echo $? > /tekton/run/out'
    step = {
        "name": "step-test",
        "image": EMPTY,
        "command": ["/tekton/bin/busybox"],
        "args": ["sh", "-c", wait, "entrypoint", script],
        "terminationMessagePath": "/tekton/termination",
        "env": [{"name": "HOME", "value": "/tekton/home"}],
        "workingDir": "/workspace",
    }
    inits = [
        copied("prepare", "/tekton/bin"),
        {
            "name": "place-scripts",
            "image": BUSYBOX,
            "command": ["sh", "-c", place],
        },
    ]
    sidecar = {"name": "sidecar-db", "image": BUSYBOX, "command": ["sh", "-c", "echo ${FLOX_ENV-image}; sleep 1000"]}
    volumes = ("tekton.bin", "tekton.scripts", "tekton.run", "tekton.home", "workspace")
    applied(ci_pod("tekton", step, sidecar, inits=inits, only="step-*", volumes=volumes))
    assert "Hello, world!" in ended(cluster, "tekton", "step-test")
    assert cluster.kubectl("logs", "tekton", "--container=sidecar-db") == "image\n"


def test_argo_workflows(cluster: Cluster, applied: Callable[..., None]) -> None:
    """`init` copies argoexec, the main container is `argoexec emissary -- COMMAND`, and `wait` reads its exit code."""
    emissary = '"$@"; code=$?; echo $code > /var/run/argo/exitcode; exit $code'
    main = {
        "name": "main",
        "image": EMPTY,
        "command": ["/var/run/argo/busybox", "sh", "-c", emissary, "emissary", "bash", "/argo/staging/script"],
    }
    waiting = (
        "until [ -s /var/run/argo/exitcode ]; do sleep 0.1; done; echo ${FLOX_ENV-image}; cat /var/run/argo/exitcode"
    )
    place = {"name": "place", "image": BUSYBOX, "command": ["sh", "-c", f"cat > /argo/staging/script <<'E'\n{BASH}\nE"]}
    wait = {"name": "wait", "image": BUSYBOX, "command": ["sh", "-c", waiting]}
    inits = [copied("init", "/var/run/argo"), place]
    applied(ci_pod("argo", wait, main, inits=inits, only="main", volumes=("var.run.argo", "argo.staging")))
    assert "Hello, world!" in ended(cluster, "argo", "main")
    assert ended(cluster, "argo", "wait") == "image\n0\n"


def test_jenkins(cluster: Cluster, applied: Callable[..., None]) -> None:
    """The container sleeps; `sh` steps come by exec, and leave a process that writes log and result.

    It is `nohup` that Jenkins starts it with, which the bed's busybox does not have.
    """
    agent = {"name": "jnlp", "image": BUSYBOX, "command": ["sh", "-c", "echo ${FLOX_ENV-image}; sleep 1000"]}
    build = {"name": "build", "image": EMPTY, "command": ["sleep"], "args": ["9999999"]}
    applied(ci_pod("jenkins", agent, build, only="build", volumes=("home.jenkins.agent",)))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/jenkins", "--timeout=180s", timeout=190)
    folder = "/home/jenkins/agent/durable-1"
    durable = (
        f"mkdir -p {folder}; cd {folder}; cat > script.sh <<'E'\nset -e\nhello\nE\n"
        'setsid sh -c "( sh -xe script.sh > log 2>&1; echo \\$? > result.tmp; mv result.tmp result ) >&- 2>&- &"\n'
        "exit\n"
    )
    cluster.kubectl("exec", "-i", "jenkins", "--container=build", "--", "sh", input=durable)
    read = ("exec", "jenkins", "--container=jnlp", "--", "cat")
    cluster.wait_until(lambda: cluster.try_kubectl(*read, f"{folder}/result") is not None, 30)
    assert cluster.kubectl(*read, f"{folder}/result") == "0\n"
    assert "Hello, world!" in cluster.kubectl(*read, f"{folder}/log")


def test_github_s_container_hooks(cluster: Cluster, applied: Callable[..., None]) -> None:
    """The job container follows /dev/null; `run` steps are files in the work volume that come by exec."""
    job = {"name": "job", "image": EMPTY, "command": ["tail"], "args": ["-f", "/dev/null"], "workingDir": "/__w"}
    applied(ci_pod("arc", job, only="job", volumes=("__w",)))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/arc", "--timeout=180s", timeout=190)

    def run(*command: str, text: str | None = None) -> str:
        words = ("-i",) if text else ()
        return cluster.kubectl("exec", *words, "arc", "--container=job", "--", *command, input=text)

    alpine = '[ "$(cat /etc/*release* 2>/dev/null | grep -i -e "^ID=*alpine*" -c)" != 0 ] || exit 1'
    assert cluster.try_kubectl("exec", "arc", "--", "sh", "-c", alpine) is None, "the hook asks, and goes on without"
    run("sh", "-c", "cat > /__w/step.sh", text=f"{BASH}\n")
    run("sh", "-c", "cat > /__w/wrap.sh", text='#!/bin/sh -l\nset -e\ncd /__w && exec env "A=b" bash -e /__w/step.sh\n')
    assert "Hello, world!" in run("sh", "-e", "/__w/wrap.sh")


def test_gitlab_s_concrete_mode(cluster: Cluster, applied: Callable[..., None]) -> None:
    """FF_CONCRETE: the helper's program is the build container's command and serves steps; `proxy` comes by exec."""
    one = 'eval "$step" > /steps/log 2>&1; echo $? > /steps/end'
    serve = f"mkfifo /steps/in; while read -r step < /steps/in; do {one}; done"
    build = {"name": "build", "image": EMPTY, "command": ["/steps/busybox", "sh", "-c", serve]}
    inits = [copied("init-steps-bootstrap", "/steps")]
    outside = {"flox.dev/skip-containers-exec": "build"}
    applied(ci_pod("concrete", build, inits=inits, only="build", volumes=("steps",), **outside))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/concrete", "--timeout=180s", timeout=190)

    def proxy(script: str) -> str:
        return cluster.kubectl("exec", "concrete", "--", "/steps/busybox", "sh", "-c", script)

    proxy("until [ -p /steps/in ]; do sleep 0.1; done; echo hello > /steps/in")
    proxy("until [ -s /steps/end ]; do sleep 0.1; done")
    assert "Hello, world!" in proxy("cat /steps/log")
    assert proxy("cat /steps/end; echo ${FLOX_ENV-outside}") == "0\noutside\n"
