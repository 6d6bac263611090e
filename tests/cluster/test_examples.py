"""Every file of docs/examples on a real cluster, as it stands there."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.bed import images
from tests.bed.flox import PRIVATE_TOKEN
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.test_cluster import FETCH

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
HELLO = "Hello, world!"
WAIT_S = 180


@pytest.fixture(scope="module")
def flox(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Generator[FloxCluster]:
    """flox-node on both nodes, and the one image that an example names, as if pulled."""
    folder = tmp_path_factory.mktemp("examples")
    archive = folder / "busybox.tar"
    images.write_archive(archive, "docker.io/library/busybox:1.37", [images.busybox_layer()], {"Env": [images.PATH]})
    cluster.load(archive)
    with FloxCluster.installed(cluster) as applied:
        yield applied


@pytest.fixture
def example(cluster: Cluster, flox: FloxCluster) -> Generator[Callable[[str], None]]:
    """Apply one of the files; what it holds is deleted after the test."""
    files: list[Path] = []

    def apply(name: str) -> None:
        files.append(EXAMPLES / name)
        cluster.kubectl("apply", "--filename", files[-1])

    yield apply
    for file in files:
        cluster.kubectl("delete", "--filename", file, "--wait", "--ignore-not-found", timeout=120)


def _logs(cluster: Cluster, name: str, *words: str) -> str:
    return cluster.kubectl("logs", name, *words)


def _wait(cluster: Cluster, condition: str, name: str) -> None:
    cluster.kubectl("wait", f"--for={condition}", name, f"--timeout={WAIT_S}s", timeout=WAIT_S + 10)


@pytest.mark.parametrize("name", ["hello", "pinned"])
def test_a_program_of_an_environment_runs_once(name: str, cluster: Cluster, example: Callable[[str], None]) -> None:
    example(f"{name}.yaml")
    _wait(cluster, "jsonpath={.status.phase}=Succeeded", f"pod/{name}")
    assert HELLO in _logs(cluster, name)


def test_a_private_environment_runs_with_the_secret_that_the_file_asks_for(
    cluster: Cluster, example: Callable[[str], None]
) -> None:
    text = (EXAMPLES / "private.yaml").read_text()
    command = next(line.strip("# \n") for line in text.splitlines() if "kubectl create secret" in line)
    words = command.replace('"$(flox auth token)"', PRIVATE_TOKEN).split()[1:]
    cluster.kubectl(*words)
    try:
        example("private.yaml")
        _wait(cluster, "jsonpath={.status.phase}=Succeeded", "pod/private")
        assert HELLO in _logs(cluster, "private")
    finally:
        cluster.kubectl("delete", "secret", "floxhub")


def test_a_helper_runs_from_its_image_beside_the_environment(cluster: Cluster, example: Callable[[str], None]) -> None:
    example("sidecar.yaml")
    _wait(cluster, "condition=Ready", "pod/mixed")
    cluster.wait_until(lambda: HELLO in _logs(cluster, "mixed", "--container=helper"), 60, "the helper has read it")
    helper = cluster.try_kubectl("exec", "mixed", "--container=helper", "--", "ls", "/nix")
    assert helper is None, "the helper has no store"


def test_a_job_and_a_cron_job_end_with_their_program(cluster: Cluster, example: Callable[[str], None]) -> None:
    example("job.yaml")
    _wait(cluster, "condition=Complete", "job/report")
    assert HELLO in _logs(cluster, "job/report")
    example("cronjob.yaml")
    cluster.kubectl("create", "job", "now", "--from=cronjob/report")
    try:
        _wait(cluster, "condition=Complete", "job/now")
        assert HELLO in _logs(cluster, "job/now")
    finally:
        cluster.kubectl("delete", "job", "now")


@pytest.mark.timeout(600)
def test_the_web_application_counts_its_visitors_in_redis(cluster: Cluster, example: Callable[[str], None]) -> None:
    example("web.yaml")
    _wait(cluster, "condition=Available", "deployment/redis")
    _wait(cluster, "condition=Available", "deployment/web")
    seen: list[str] = []

    def answers() -> bool:
        done = cluster.run(*FETCH, f"http://{cluster.nodes[0].address}:30080/")
        if done.returncode == 0 and done.stdout.strip():
            seen.append(done.stdout.strip())
        return len(seen) >= 2

    cluster.wait_until(answers, 60, "the page is served")
    numbers = [int(line.rstrip(".").rpartition(" ")[2]) for line in seen]
    assert numbers[1] > numbers[0] > 0, seen
    assert seen[0].startswith("Hello from"), seen


def test_every_example_is_run_by_a_test_of_this_module() -> None:
    tested = Path(__file__).read_text()
    names = {file.stem for file in EXAMPLES.glob("*.yaml")}
    assert {name for name in names if f'"{name}' not in tested} == set()
