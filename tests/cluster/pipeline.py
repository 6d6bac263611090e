"""A pipeline of GitLab's on the cluster of the tests: a `.gitlab-ci.yml` and the runner's values as they stand in docs.

What GitLab and its runner make of them: variables expanded, annotations and service accounts held against the runner's
patterns, and the helper's stages around each script (git, cache, artifacts) with the commands of the real helper, whose
program is played by `tests/doubles/gitlab-helper` and whose git is a real one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bed import cache, golang, images, store
from tests.cluster import network
from tests.cluster.cluster import Cluster
from tests.cluster.gitlab import HELPER_APPLETS, Job

HELPER = "flox.test/gitlab-helper-with-git:1"
PROJECT = "demo/greeter"
DIRECTORY = f"/builds/{PROJECT}"
TOKEN = "glcbt-of-the-jobs"  # GitLab has one for each job
PORT = 8929
_HELPER_PROGRAM = Path(__file__).parents[1] / "doubles/gitlab-helper"
_ROOT = Path(__file__).parents[2]
_APPLETS = ("cp", "find", "ln", "rmdir", "sort", "uname")


class NotAllowedError(Exception):
    """The runner ends a job at once whose overwrites its configuration does not allow."""


@dataclass(frozen=True)
class Runner:
    """`[runners.kubernetes]` of a runner's configuration."""

    settings: Mapping[str, Any]

    @classmethod
    def of(cls, values: Path) -> Runner:
        """The one runner of Helm values."""
        config = tomllib.loads(yaml.safe_load(values.read_text())["runners"]["config"])
        return cls(config["runners"][0]["kubernetes"])

    def annotations(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Those of the pod: the runner's own, expanded, and what the job may set over them."""
        found = {key: _expanded(value, variables) for key, value in self.settings["pod_annotations"].items()}
        for name, value in variables.items():
            if name.startswith("KUBERNETES_POD_ANNOTATIONS_") and self._allows("pod_annotations", value):
                key, _, text = value.partition("=")
                found[key] = text
        return found

    def pod(self, variables: Mapping[str, str]) -> dict[str, Any]:
        """What of the pod's spec follows from the configuration and the job's variables."""
        spec = {"runtimeClassName": self.settings["runtime_class_name"]}
        wanted = variables.get("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE")
        if wanted and self._allows("service_account", wanted):
            spec["serviceAccountName"] = wanted
        return spec

    def volumes(self) -> dict[str, dict[str, Any]]:
        """By mount path."""
        found = self.settings.get("volumes", {}).get("host_path", [])
        kind = {"type": "DirectoryOrCreate"}
        return {each["mount_path"]: {"hostPath": {"path": each["host_path"], **kind}} for each in found}

    def _allows(self, what: str, value: str) -> bool:
        """Without a pattern the runner takes no notice of a job's wishes; with one that does not match, it fails it."""
        pattern = self.settings.get(f"{what}_overwrite_allowed", "")
        if pattern and not re.search(pattern, value):
            raise NotAllowedError(f"{value!r} does not match {what}_overwrite_allowed {pattern!r}")
        return bool(pattern)


@dataclass(frozen=True)
class Pipeline:
    """The jobs of a `.gitlab-ci.yml` on the default branch, at the commit `sha`."""

    file: Path
    runner: Runner
    sha: str

    def jobs(self) -> list[Job]:
        """In the order in which they run. Each job's number is its place, counted from 1."""
        content = yaml.safe_load(self.file.read_text())
        stages, common = content.pop("stages"), content.pop("variables", {})
        entries = sorted(content.items(), key=lambda item: stages.index(item[1]["stage"]))
        return [self._job(name, entry, common, number) for number, (name, entry) in enumerate(entries, 1)]

    def _job(self, name: str, entry: Mapping[str, Any], common: Mapping[str, str], number: int) -> Job:
        predefined = {
            "CI_PROJECT_DIR": DIRECTORY,
            "CI_COMMIT_SHORT_SHA": self.sha[:8],
            "CI_COMMIT_BRANCH": "main",
            "CI_DEFAULT_BRANCH": "main",
            "CI_JOB_TOKEN": TOKEN,
        }
        variables = {**predefined, **common, **entry.get("variables", {})}
        variables = {key: _expanded(value, variables) for key, value in variables.items()}
        for rule in entry.get("rules", []):
            left, _, right = _expanded(rule["if"], variables).partition(" == ")
            assert left == right, f"{name} does not run: {rule}"
        annotations = self.runner.annotations(variables)
        lines = (f"echo {shlex.quote(f'$ {line}')}\n{line}" for line in entry["script"])
        return Job(
            name=name,
            script="\n".join([f"cd {DIRECTORY}", *lines]),
            environment=None,
            image=self.runner.settings["image"],
            annotations=annotations,
            variables=variables,
            volumes=self.runner.volumes(),
            pod=self.runner.pod(variables),
            before=self._before(entry, number),
            after=self._after(entry, number),
            helper=HELPER,
            poll_timeout=self.runner.settings["poll_timeout"],
            stage_timeout=600,
        )

    def _before(self, entry: Mapping[str, Any], number: int) -> dict[str, str]:
        url = f"http://gitlab-ci-token:{TOKEN}@{network.API_SERVER}:{PORT}/{PROJECT}.git"
        refspec = "+refs/heads/main:refs/remotes/origin/main"
        stages = {
            "get_sources": f"umask 0000\ngit init -q {DIRECTORY}\ncd {DIRECTORY}\ngit remote add origin {url}\n"
            f"git fetch origin {refspec} --depth 20 --prune --quiet\ngit checkout -f -q {self.sha}\ngit clean -ffdx"
        }
        if "cache" in entry:
            extract = f"gitlab-runner-helper cache-extractor --file {_archive(entry)} --timeout 10"
            stages["restore_cache"] = _in_project(
                f"if {extract}; then echo 'Successfully extracted cache'; else echo 'Failed to extract cache'; fi"
            )
        earlier = (self._artifacts_of(each) for each in range(1, number))
        if downloads := "\n".join(filter(None, earlier)):
            stages["download_artifacts"] = _in_project(downloads)
        return stages

    def _artifacts_of(self, number: int) -> str:
        content = yaml.safe_load(self.file.read_text())
        jobs = [entry for entry in content.values() if isinstance(entry, dict) and "stage" in entry]
        jobs.sort(key=lambda entry: content["stages"].index(entry["stage"]))
        return _helper("artifacts-downloader", number) if "artifacts" in jobs[number - 1] else ""

    def _after(self, entry: Mapping[str, Any], number: int) -> dict[str, str]:
        stages = {}
        if "cache" in entry:
            archiver = f"gitlab-runner-helper cache-archiver --file {_archive(entry)} --timeout 10"
            stages["archive_cache"] = _in_project(f"{archiver} {_paths(entry['cache'])}")
        if "artifacts" in entry:
            uploader = _helper("artifacts-uploader", number)
            form = "--artifact-format zip --artifact-type archive"
            stages["upload_artifacts_on_success"] = _in_project(f"{uploader} {_paths(entry['artifacts'])} {form}")
        return stages


@dataclass(frozen=True)
class GitLab:
    """A GitLab with one project, and what its jobs have uploaded."""

    folder: Path
    sha: str

    def artifact(self, number: int, name: str, into: Path) -> Path:
        """A file of a job's artifacts."""
        with zipfile.ZipFile(self.folder / f"artifacts/{number}.zip") as archive:
            return Path(archive.extract(name, into))


@contextmanager
def gitlab(cluster: Cluster, project: Path, folder: Path) -> Generator[GitLab]:
    """A GitLab beside the API server, whose project holds the files of a folder in one commit."""
    work, bare = folder / "work", folder / f"{PROJECT}.git"
    shutil.copytree(project, work)
    identity = ("-c", "user.name=author", "-c", "user.email=author@example.com")
    _git("-C", work, "init", "-q", "--initial-branch=main")
    _git("-C", work, "add", "--all")
    _git("-C", work, *identity, "commit", "-q", "--message=A greeter")
    _git("clone", "-q", "--bare", work, bare)
    sha = _git("-C", bare, "rev-parse", "main").strip()
    address = ("--host", network.API_SERVER, "--port", str(PORT))
    words = (sys.executable, "-m", "tests.doubles.gitlab", *address, "--folder", folder, "--token", TOKEN)
    with subprocess.Popen(cluster.command(*words), stdout=subprocess.PIPE, cwd=_ROOT) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield GitLab(folder, sha)
        finally:
            server.kill()


def helper_image() -> Path:
    """The archive of what stands for the runner's helper image: a shell, git, and the helper's program."""
    recipe = {"store": store.base().root.name, "helper": golang.sources(_HELPER_PROGRAM), "revision": 1}
    return cache.artefact("gitlab-helper", recipe, _build_helper_image) / "helper.tar"


def _build_helper_image(folder: Path) -> None:
    base = store.base()
    golang.build(_HELPER_PROGRAM, ".", into=folder)
    program = folder / "gitlab-helper"
    files: dict[str, images.Entry] = {f"bin/{applet}": ("busybox", 0o777) for applet in (*HELPER_APPLETS, *_APPLETS)}
    files["bin/gitlab-runner-helper"] = (program.read_bytes(), 0o755)
    files["usr/bin/dumb-init"] = ("/bin/gitlab-runner-helper", 0o777)
    files["bin/git"] = (f"{base.paths['git']}/bin/git", 0o777)
    program.unlink()
    for path in base.run(base.nix_store, "--query", "--requisites", base.paths["git"]).decode().split():
        for file in (base.real(path), *sorted(base.real(path).rglob("*"))):
            name = str(file.relative_to(base.root))
            if file.is_symlink():
                files[name] = (str(file.readlink()), 0o777)
            else:
                files[name] = (None if file.is_dir() else file.read_bytes(), file.stat().st_mode & 0o777)
    layers = [images.busybox_layer(), images.layer(files)]
    images.write_archive(folder / "helper.tar", HELPER, layers, {"Env": [images.PATH]})


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """As GitLab: variables may hold variables; what is not known becomes nothing."""
    for _ in range(5):
        names = string.Template(text).get_identifiers()
        text = string.Template(text).safe_substitute({name: variables.get(name, "") for name in names})
    return text


def _in_project(script: str) -> str:
    return f"cd {DIRECTORY}\n{script}"


def _helper(command: str, number: int) -> str:
    gitlab = f"http://{network.API_SERVER}:{PORT}/"
    return f"gitlab-runner-helper {command} --url {gitlab} --token {TOKEN} --id {number}"


def _archive(entry: Mapping[str, Any]) -> str:
    return f"../../../cache/{PROJECT}/{entry['cache']['key']}/cache.zip"


def _paths(of: Mapping[str, Any]) -> str:
    return " ".join(f"--path {shlex.quote(path)}" for path in of["paths"])


def _git(*words: str | Path) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout
