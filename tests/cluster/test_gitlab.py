"""GitLab CI on Flox nodes: Flox' published configuration to the letter, and what its jobs meet."""

import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.bed import store
from tests.bed.flox import PRIVATE_TOKEN
from tests.bed.images import BUSYBOX
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import NAMESPACE, FloxCluster
from tests.cluster.gitlab import HELPER, PUBLISHED, Ended, Executor, Job, helper_image, image_with_a_shell
from tests.conftest import FULL
from tests.doubles.hub import catalog_package, lockfile

Run = Callable[[Job], Ended]
full = pytest.mark.skipif(not FULL, reason="part of make test-full")
INSIDE = {name: value for name, value in PUBLISHED.items() if name != "flox.dev/skip-containers-exec"}
"""What the legacy strategy needs, whose every stage is an exec."""
ONLY_BUILD = {**PUBLISHED, "flox.dev/only-containers": "build"}
ONLY_BUILD.pop("flox.dev/skip-containers")
ENTRY = "flox.test/entry:1"


@pytest.fixture(scope="module")
def installed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[FloxCluster]:
    folder = tmp_path_factory.mktemp("gitlab")
    entry = image_with_a_shell(folder / "entry.tar", ENTRY, ["/bin/busybox", "env", "ENTERED=yes"])
    cluster.load(helper_image(folder / "helper.tar"), entry)
    with FloxCluster.installed(cluster) as installed:
        hello = catalog_package("hello", {"out": store.binary_cache().hello_store_path})
        failing = "export SECRET=kept\necho the database is not there >&2\nexit 9\n"
        installed.hub.publish("ci", "badhook", lockfile([hello], hook=failing))
        installed.hub.publish("ci", "hook", lockfile([hello], variables={"COLOUR": "red"}, hook="export HOOKED=yes\n"))
        yield installed


@pytest.fixture(scope="module")
def run(cluster: Cluster, installed: FloxCluster) -> Run:
    return Executor(cluster).run


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


@full
def test_a_private_environment_takes_the_secret_of_the_runner_s_configuration(run: Run, cluster: Cluster) -> None:
    cluster.kubectl("create", "secret", "generic", "runner", f"--from-literal=floxhub-token={PRIVATE_TOKEN}")
    try:
        ended = run(Job("with-secret", "hello", "acme/tool", secret="runner"))
    finally:
        cluster.kubectl("delete", "secret", "runner")
    assert ended.status == "success", ended.log
    assert PRIVATE_TOKEN not in ended.log


@full
@pytest.mark.parametrize("user", [1000, 12345])
def test_a_job_of_another_user_has_a_name_a_home_and_a_temporary_folder(user: int, run: Run) -> None:
    context = {"securityContext": {"runAsUser": user, "runAsGroup": user, "fsGroup": user}}
    ended = run(Job(f"user-{user}", 'id -un; touch "$HOME/x" && mktemp', pod=context))
    assert ended.status == "success", ended.log
    assert "/tmp/" in ended.log


def test_a_hook_that_failed_is_told_with_its_last_line(run: Run) -> None:
    ended = run(Job("badhook", "true", "ci/badhook", poll_timeout=20))
    assert ended.status == "system failure"
    told = [line for line in ended.log.splitlines() if "FloxHookFailed" in line]
    assert any("ci/badhook" in line and "the database is not there" in line for line in told), ended.log


def test_a_fetch_that_takes_its_time_is_told_and_goes_on(run: Run, installed: FloxCluster) -> None:
    redis = catalog_package("redis", {"out": store.binary_cache().redis_store_path})
    installed.hub.publish("ci", "big", lockfile([redis]))
    installed.hub.break_with("throttle", bytes_per_s=200_000)
    try:
        ended = run(Job("cold", "true", "ci/big", poll_timeout=20))
    finally:
        installed.hub.repair()
    assert ended.status == "system failure"
    told = [line for line in ended.log.splitlines() if "FloxFetching" in line]
    assert any("environment ci/big: it is" in line for line in told), ended.log


# The other rows of what was seen with the real runner. (name, job, what its log has, the status)
BUSY = replace(Job("", "", image=BUSYBOX), annotations=INSIDE)
ROWS = [
    ("status", Job("", "exit 3", after_script="echo job $CI_JOB_STATUS after"), "after", "failed"),
    ("pipefail", replace(BUSY, script="set -o pipefail; false | true"), "", "failed"),
    ("here", Job("", "cat <<E | while read a b; do echo $b-$a; done\n1 2\nE"), "2-1", "success"),
    ("pinned", Job("", "hello", "ci/tools:1"), "Hello, world!", "success"),
    ("run", Job("", "hello", annotations={**PUBLISHED, "flox.dev/activate-mode": "run"}), "Hello", "success"),
    ("metrics", Job("", "hello", annotations={**PUBLISHED, "flox.dev/disable-metrics": "true"}), "Hello", "success"),
    ("hook", Job("", "echo $HOOKED-$COLOUR", "ci/hook"), "yes-red", "success"),
    (
        "outside",
        Job("", "hello", annotations={**PUBLISHED, "flox.dev/skip-containers": "build,init-permissions,helper"}),
        "",
        "system failure",
    ),
    ("image", Job("", "command -v hello; ls /bin/busybox", image=HELPER), "/bin/busybox", "success"),
    ("bare", Job("", "words=(a b); hello; echo ${#words[@]}", image=BUSYBOX), "Hello, world!", "success"),
    ("entry", Job("", "hello; echo $ENTERED", image=ENTRY, entrypoint=True), "yes", "success"),
    ("collector", Job("", "cat /builds/.gitlab-build-uid-gid; hello", collector=True), "Hello", "success"),
    (
        "readonly",
        Job(
            "",
            'echo x > $FLOX_ENV_CACHE/x && touch /builds/y "$HOME/z" && mktemp && ! touch /x',
            context={"readOnlyRootFilesystem": True, "runAsUser": 1000, "capabilities": {"drop": ["ALL"]}},
        ),
        "/tmp/",
        "success",
    ),
    ("background", Job("", "sleep 1000 & echo left"), "left", "success"),
    ("long", Job("", f": {'x' * 300_000}\nseq 8000 | tail -1"), "8000", "success"),
    (
        "cancel",
        Job(
            "",
            "trap 'echo trapped; exit 1' TERM; echo cancel me; while :; do sleep 0.2; done",
            after_script="echo afterwards",
            cancelled=True,
        ),
        "afterwards",
        "failed",
    ),
]


@full
@pytest.mark.parametrize(("name", "job", "says", "status"), ROWS, ids=lambda value: value if value is ROWS else None)
def test_a_job(name: str, job: Job, says: str, status: str, run: Run) -> None:
    ended = run(replace(job, name=f"row-{name}", poll_timeout=30))
    assert ended.status == status, ended.log
    assert says in ended.log


@full
@pytest.mark.timeout(900)
def test_fifty_jobs_of_which_24_at_a_time_leave_nothing(cluster: Cluster, installed: FloxCluster, run: Run) -> None:
    with ThreadPoolExecutor(24) as pool:
        all_ended = list(pool.map(lambda number: run(Job(f"many-{number}", "hello", poll_timeout=180)), range(50)))
    assert [ended.log for ended in all_ended if ended.status != "success"] == []
    for node in cluster.nodes:
        left = node.run(
            "ls /run/flox-node/containers /run/flox-node/refusals 2>/dev/null; ls /nix/var/nix/gcroots/flox-node"
        )
        assert not re.search(r"\.json|^pod-", left.stdout, re.MULTILINE), left.stdout


@full
def test_a_rollout_of_the_daemonset_does_not_touch_a_job(installed: FloxCluster, run: Run, cluster: Cluster) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, Job("rollout", "sleep 15; hello"))
        cluster.kubectl("rollout", "restart", "daemonset/flox-node", f"--namespace={NAMESPACE}")
        assert job.result().status == "success", job.result().log
    cluster.rollout("daemonset/flox-node", f"--namespace={NAMESPACE}", timeout=120)
    installed.converged()
