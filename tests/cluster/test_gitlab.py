"""GitLab CI on Flox nodes: Flox' published configuration to the letter, and what its jobs meet."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bed import parity, store
from tests.bed.flox import PRIVATE_TOKEN
from tests.bed.images import BUSYBOX
from tests.cluster import pipeline
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import NAMESPACE, FloxCluster
from tests.cluster.gitlab import HELPER, PUBLISHED, Ended, Executor, Job, helper_image, image_with_a_shell, pod_of
from tests.cluster.node import Node
from tests.conftest import FULL
from tests.doubles.hub import catalog_package, lockfile

Run = Callable[[Job], Ended]
full = pytest.mark.skipif(not FULL, reason="part of make test-full")
INSIDE = {name: value for name, value in PUBLISHED.items() if name != "flox.dev/skip-containers-exec"}
"""What the legacy strategy needs, whose every stage is an exec."""
ONLY_BUILD = pipeline.Runner.of(Path(__file__).parents[2] / "docs/examples/gitlab/values.yaml").annotations({})
"""What the page on GitLab CI recommends."""
ENTRY = "flox.test/entry:1"
TOKEN = {"/var/run/secrets/flox.dev": {"secret": {"secretName": "runner"}}}


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
def executor(cluster: Cluster, installed: FloxCluster) -> Executor:
    return Executor(cluster)


@pytest.fixture(scope="module")
def run(executor: Executor) -> Run:
    return executor.run


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


def test_services_named_by_their_alias_and_what_a_mesh_injects_run_as_their_image_says(run: Run) -> None:
    names = ("cache", "istio-proxy")
    said = "echo ${FLOX_ENV-image} > /builds/$0; sleep 1000"
    services = {name: {"image": BUSYBOX, "command": ["sh", "-c", said, name]} for name in names}
    script = "\n".join(f"until [ -s /builds/{name} ]; do sleep 1; done; cat /builds/{name}" for name in names)
    ended = run(Job("services", script, annotations=ONLY_BUILD, services=services))
    assert ended.status == "success", ended.log
    assert "\nimage\nimage\n" in ended.log


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
        ended = run(Job("with-secret", "hello", "acme/tool", volumes=TOKEN))
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


def test_a_hook_that_failed_is_told_with_its_last_line(executor: Executor) -> None:
    told = executor.told(Job("badhook", "true", "ci/badhook"), "FloxHookFailed")
    assert "ci/badhook" in told
    assert "the database is not there" in told


def test_a_fetch_that_takes_its_time_is_told(executor: Executor, installed: FloxCluster) -> None:
    redis = catalog_package("redis", {"out": store.binary_cache().redis_store_path})
    installed.hub.publish("ci", "big", lockfile([redis]))
    installed.hub.break_with("throttle", bytes_per_s=200_000)
    try:
        told = executor.told(Job("cold", "true", "ci/big"), "FloxFetching")
    finally:
        installed.hub.repair()
    assert "environment ci/big: it is" in told


@full
@pytest.mark.usefixtures("installed")
def test_what_is_not_flox_in_a_pod_is_as_under_runc(cluster: Cluster, applied: Callable[..., None]) -> None:
    """The helper, which the runner's configuration keeps out: environment, mounts, capabilities, seccomp, limits."""
    classes = {"with-flox": "flox", "with-runc": None}
    here = {"nodeSelector": {"kubernetes.io/hostname": "worker-2"}}
    for name, handler in classes.items():
        applied(pod_of(Job(name, "", image=HELPER, pod={"runtimeClassName": handler, **here})))

    def seen(name: str) -> dict[str, list[str]]:
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s", timeout=70)
        command = ("sh", "-c", parity.SCRIPT)
        return parity.comparable(cluster.kubectl("exec", name, "--container=helper", "--", *command), name)

    assert seen("with-flox") == seen("with-runc")


def left_on(node: Node) -> list[str]:
    """What there is of pods of the handler on a node: records, roots, mounts."""
    records = "cd /run/flox-node && find pods containers refusals -type f 2>/dev/null"
    roots = "ls /nix/var/nix/gcroots/flox-node | grep ^pod-"
    mounts = (
        "grep -e /io.containerd.runtime.v2.task/ -e /run/flox-node/ -e /views/ /proc/self/mountinfo | grep -v /rootfs"
    )
    return node.run(f"{records}; {roots}; {mounts}; true").stdout.splitlines()


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
    ("collects", Job("", "hello", collector=True, annotations=ONLY_BUILD), "Hello", "success"),
    ("umask", Job("", "umask; ulimit -n"), "0022", "success"),
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
def test_a_job_below_dumb_init(run: Run, cluster: Cluster) -> None:
    cluster.load(pipeline.helper_image())
    ended = run(Job("dumb-init", "hello; cat /proc/1/cmdline", helper=pipeline.HELPER, dumb_init=True))
    assert ended.status == "success", ended.log
    assert "Hello, world!" in ended.log
    assert "dumb-init" in ended.log


@full
def test_a_job_that_is_ended_by_force_or_by_its_time_leaves_nothing(executor: Executor, cluster: Cluster) -> None:
    forced = Job("forced", "trap '' TERM; echo cancel me; while :; do sleep 1; done")
    assert executor.abandon(forced) < 30, "with a grace period of one second"
    late = pod_of(Job("late", "", pod={"activeDeadlineSeconds": 5}))
    cluster.apply(late)
    failed = "--for=jsonpath={.status.phase}=Failed"
    cluster.kubectl("wait", failed, "pod/late", "--timeout=180s", timeout=190)
    assert cluster.get("pod", "late")["status"]["reason"] == "DeadlineExceeded"
    cluster.delete(late)
    assert {node.name: left_on(node) for node in cluster.nodes} == {node.name: [] for node in cluster.nodes}


@full
def test_a_hub_that_is_away_does_not_keep_a_job_from_what_the_node_has(run: Run, installed: FloxCluster) -> None:
    here = {"nodeSelector": {"kubernetes.io/hostname": "worker-1"}}
    first = run(Job("before", "hello", pod=here))
    assert first.status == "success", first.log
    installed.hub.break_with("status", status=503)
    try:
        ended = run(Job("away", "hello", pod=here))
    finally:
        installed.hub.repair()
    assert ended.status == "success", ended.log


@full
@pytest.mark.parametrize(("annotations", "says"), [(ONLY_BUILD, "image"), (PUBLISHED, "/nix/store")])
def test_a_container_for_debugging(
    annotations: dict[str, str], says: str, cluster: Cluster, installed: FloxCluster, applied: Callable[..., None]
) -> None:
    """Flox' list of what to skip does not know the container that `kubectl debug` adds; ours of what is Flox does."""
    assert installed
    job = pod_of(Job("debugged", "", annotations=annotations))
    applied(job)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/debugged", "--timeout=180s", timeout=190)
    command = ("sh", "-c", "echo ${FLOX_ENV-image}")
    cluster.kubectl("debug", "debugged", f"--image={BUSYBOX}", "--container=look", "--", *command)
    cluster.wait_until(
        lambda: says in (cluster.try_kubectl("logs", "debugged", "--container=look") or ""), 60, f"it says {says}"
    )


@full
@pytest.mark.timeout(1800)
def test_fifty_jobs_of_which_24_at_a_time_leave_nothing(cluster: Cluster, installed: FloxCluster, run: Run) -> None:
    hello = catalog_package("hello", {"out": store.binary_cache().hello_store_path})
    installed.hub.publish("ci", "many", lockfile([hello], variables={"MANY": "yes"}))
    for heat in ("cold", "warm"):
        jobs = [Job(f"{heat}-{number}", "hello; echo $MANY", "ci/many", poll_timeout=180) for number in range(50)]
        with ThreadPoolExecutor(24) as pool:
            all_ended = list(pool.map(run, jobs))
        assert [ended.log for ended in all_ended if ended.status != "success"] == []
        for node in cluster.nodes:
            assert left_on(node) == []
        events = cluster.get("events", "--field-selector", "source=flox-node")["items"]
        mine = [event["message"] for event in events if event["involvedObject"]["name"].startswith(f"{heat}-")]
        assert [text for text in mine if heat == "warm" or "it is" not in text] == [], "a fetch that took long is told"


@full
def test_a_rollout_of_the_daemonset_does_not_touch_a_job(installed: FloxCluster, run: Run, cluster: Cluster) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, Job("rollout", "sleep 15; hello"))
        cluster.kubectl("rollout", "restart", "daemonset/flox-node", f"--namespace={NAMESPACE}")
        assert job.result().status == "success", job.result().log
    cluster.rollout("daemonset/flox-node", f"--namespace={NAMESPACE}", timeout=120)
    installed.converged()
