"""GitLab CI on Flox nodes: Flox' published configuration to the letter, and what its jobs meet."""

from collections.abc import Callable, Generator
from dataclasses import replace

import pytest

from tests.bed.flox import PRIVATE_TOKEN
from tests.bed.images import BUSYBOX
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.gitlab import PUBLISHED, Ended, Executor, Job, helper_image
from tests.conftest import FULL

Run = Callable[[Job], Ended]
INSIDE = {name: value for name, value in PUBLISHED.items() if name != "flox.dev/skip-containers-exec"}
"""What the legacy strategy needs, whose every stage is an exec."""
ONLY_BUILD = {**PUBLISHED, "flox.dev/only-containers": "build"}
ONLY_BUILD.pop("flox.dev/skip-containers")


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[Run]:
    folder = tmp_path_factory.mktemp("gitlab")
    cluster.load(helper_image(folder / "helper.tar"))
    with FloxCluster.installed(cluster, folder):
        yield Executor(cluster).run


def test_the_published_page_s_job_runs_in_an_environment_without_a_shell(run: Run) -> None:
    ended = run(Job("hello", "hello\nwhoami", environment="flox/hello"))
    assert (ended.status, ended.code) == ("success", 0), ended.log
    assert "Hello, world!" in ended.log
    assert "root" in ended.log


def test_a_job_s_script_is_run_by_the_environment_s_bash(run: Run) -> None:
    script = (
        'words=(a "b c"); [[ ${#words[@]} == 2 ]] && echo "bash ${BASH_VERSION%%.*}"\n'
        "printf '#!/usr/bin/env bash\\n[[ -n $BASH_VERSION ]] && echo by env\\n' > /builds/x\n"
        "chmod +x /builds/x; /builds/x\n"
        'echo "$HOME" > "$HOME/.gitconfig"; mktemp'
    )
    ended = run(Job("bash", script, after_script="echo afterwards"))
    assert ended.status == "success", ended.log
    for text in ("bash 5", "by env", "/tmp/", "afterwards"):
        assert text in ended.log


def test_a_job_fails_with_its_script_s_code(run: Run) -> None:
    ended = run(Job("seven", "exit 7"))
    assert (ended.status, ended.code) == ("failed", 7), ended.log


WRONG = [
    ("none", None, {}, "flox.dev/environment"),
    ("form", "ci/tools@1", {}, "ci/tools@1"),
    ("unknown", "ci/nothing", {}, "ci/nothing"),
    ("generation", "ci/tools:9", {}, "9"),
    ("private", "acme/tool", {}, "acme/tool"),
    ("value", "ci/tools", {"flox.dev/activate-mode": "prod"}, "prod"),
]


@pytest.mark.parametrize(("name", "environment", "more", "says"), WRONG if FULL else WRONG[1:3])
def test_what_only_its_author_can_cure_ends_a_job_at_once_with_the_reason(
    name: str, environment: str | None, more: dict[str, str], says: str, run: Run
) -> None:
    ended = run(Job(f"wrong-{name}", "true", environment, annotations={**PUBLISHED, **more}))
    assert ended.status == "system failure"
    assert ended.log.startswith("pod status is Failed"), "and not after the runner's whole patience"
    told = ended.log.split("WARNING")
    assert says in told[0], "in the state of the container that ended"
    assert any(says in line for line in told[1:]), "and in an event"


def test_services_named_by_their_alias_run_as_their_image_says(run: Run) -> None:
    service = {"image": BUSYBOX, "command": ["sh", "-c", "echo ${FLOX_ENV-image} > /builds/service; sleep 1000"]}
    script = "until [ -s /builds/service ]; do sleep 1; done; cat /builds/service"
    ended = run(Job("services", script, annotations=ONLY_BUILD, services={"cache": service}))
    assert ended.status == "success", ended.log
    assert "\nimage\n" in ended.log


def test_the_legacy_strategy_wants_its_execs_inside(run: Run) -> None:
    job = Job("legacy", "hello", legacy=True)
    outside = run(job)
    assert outside.code not in (0, None), "the published annotations keep every exec of build outside"
    assert "not found" in outside.log
    inside = run(replace(job, annotations=INSIDE))
    assert inside.status == "success", inside.log
    assert "Hello, world!" in inside.log


@pytest.mark.skipif(not FULL, reason="part of make test-full")
def test_a_private_environment_takes_the_secret_of_the_runner_s_configuration(run: Run, cluster: Cluster) -> None:
    cluster.kubectl("create", "secret", "generic", "runner", f"--from-literal=floxhub-token={PRIVATE_TOKEN}")
    try:
        volumes: list[object] = [{"name": name, "emptyDir": {}} for name in ("repo", "scripts", "logs")]
        volumes.append({"name": "token", "secret": {"secretName": "runner"}})
        ended = run(Job("with-secret", "hello", "acme/tool", pod={"volumes": volumes}))
    finally:
        cluster.kubectl("delete", "secret", "runner")
    assert ended.status == "success", ended.log
    assert PRIVATE_TOKEN not in ended.log


@pytest.mark.skipif(not FULL, reason="part of make test-full")
@pytest.mark.parametrize("user", [1000, 12345])
def test_a_job_of_another_user_has_a_name_a_home_and_a_temporary_folder(user: int, run: Run) -> None:
    context = {"securityContext": {"runAsUser": user, "runAsGroup": user, "fsGroup": user}}
    ended = run(Job(f"user-{user}", 'id -un; touch "$HOME/x" && mktemp', pod=context))
    assert ended.status == "success", ended.log
    assert "/tmp/" in ended.log
