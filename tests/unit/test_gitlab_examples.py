"""What docs/examples shows for GitLab: patterns that hold, and files in the form that GitLab takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.gitlab import PUBLISHED, quoted
from tests.cluster.pipeline import NotAllowedError, Pipeline, Runner

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
OWNERS = {"gitlab": "acme", "pipeline": "demo"}
# https://docs.gitlab.com/ci/yaml/#default: `variables` is not among them.
OF_DEFAULT = {
    "after_script", "artifacts", "before_script", "cache", "hooks", "id_tokens", "image", "interruptible", "retry",
    "services", "tags", "timeout",
}  # fmt: skip


@pytest.mark.parametrize(("folder", "owner"), OWNERS.items())
def test_a_job_chooses_among_its_owner_s_environments_and_nothing_else(folder: str, owner: str) -> None:
    runner = Runner.of(EXAMPLES / folder / "values.yaml")
    for name in ("tools", "tools:12"):
        wanted = {"KUBERNETES_POD_ANNOTATIONS_1": f"flox.dev/environment={owner}/{name}"}
        assert runner.annotations(wanted)["flox.dev/environment"] == f"{owner}/{name}"
    for refused in (
        "flox.dev/environment=other/tools",
        f"flox.dev/environment={owner}/tools/more",
        f"flox.dev/environment={owner}/tools:x",
        f"x.flox.dev/environment={owner}/tools",
        "flox.dev/skip-containers=build",
        "flox.dev/nix-mutable=true",
    ):
        with pytest.raises(NotAllowedError):
            runner.annotations({"KUBERNETES_POD_ANNOTATIONS_1": refused})


def test_the_page_that_flox_publishes_is_shown_to_the_letter() -> None:
    runner = Runner.of(EXAMPLES / "gitlab/published.yaml")
    assert runner.settings["pod_annotations"] == PUBLISHED
    assert runner.settings["pod_annotations_overwrite_allowed"] == r"^flox\.dev.*"


def test_the_environment_of_a_private_runner_follows_the_project() -> None:
    runner = Runner({"pod_annotations": {"flox.dev/environment": "acme/$CI_PROJECT_NAME"}})
    wanted = {"CI_PROJECT_NAME": "shop", "KUBERNETES_POD_ANNOTATIONS_1": "flox.dev/environment=acme/other"}
    assert runner.annotations(wanted) == {"flox.dev/environment": "acme/shop"}


def test_who_may_deploy_is_the_runner_s_to_say() -> None:
    runner = Runner.of(EXAMPLES / "pipeline/values.yaml")
    assert runner.pod({"KUBERNETES_SERVICE_ACCOUNT_OVERWRITE": "deploy"})["serviceAccountName"] == "deploy"
    for other in ("deployer", "flox-node"):
        with pytest.raises(NotAllowedError):
            runner.pod({"KUBERNETES_SERVICE_ACCOUNT_OVERWRITE": other})


@pytest.mark.parametrize("folder", OWNERS)
def test_a_pipeline_has_the_form_that_gitlab_takes(folder: str) -> None:
    file = EXAMPLES / folder / ".gitlab-ci.yml"
    content = yaml.safe_load(file.read_text())
    assert set(content.get("default", {})) <= OF_DEFAULT
    jobs = Pipeline(file, Runner.of(EXAMPLES / folder / "values.yaml"), "0" * 40).jobs()
    assert [job.name for job in jobs] == [stage for stage in content["stages"] if stage in content]
    for job in jobs:
        assert job.annotations["flox.dev/environment"].startswith(f"{OWNERS[folder]}/")


def test_what_the_runner_quotes_is_what_its_shell_reads() -> None:
    text = "a 'b' \"c\" $d \\e `f`\n\tgrün \x1b[0;m %s"
    assert subprocess.run(["bash", "-c", f"printf %s {quoted(text)}"], capture_output=True, text=True).stdout == text
