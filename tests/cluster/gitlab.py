"""GitLab's runner as far as a runtime meets it: the calls of its Kubernetes executor for one job, over kubectl.

What the real one (gitlab-runner 19, executors/kubernetes) does, and this does too: the pod's shape, `restartPolicy:
Never`, the same `sh -c DETECT` for build and helper, scripts written by `exec` as a here-quoted echo and renamed, a
stage started by one line into the stdin of the container's main process, its end read from a JSON line in the log file,
the pod's warnings printed. It gives up after `poll_timeout` seconds, and at once where the pod's phase is final. It
does not notice a build container that ended while the helper runs.
Left out: GitLab itself, git, artifacts and cache, which are the helper image's business.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bed import images
from tests.cluster.cluster import Cluster

JOB = "1-2"
HELPER = "flox.test/gitlab-helper:1"
_HELPER_APPLETS = ("chmod", "mv", "tee", "rm", "sed", "grep")
SCRIPTS, LOGS = f"/scripts-{JOB}", f"/logs-{JOB}"
LOG = f"{LOGS}/output.log"
_SHELLS = ("/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash", "/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh")
PUBLISHED = {
    "flox.dev/skip-containers": "init-permissions,helper",
    "flox.dev/skip-containers-exec": "build",
    "flox.dev/activate-mode": "dev",
}
"""The `pod_annotations` of Flox' page on GitLab CI."""


def detect(after: str = "") -> str:
    """The script by which the runner finds a shell; `after` follows its name."""
    branches = [
        f"{'elif' if index else 'if'} [ -x {shell} ]; then\n\texec {shell} {after}\n"
        for index, shell in enumerate((*_SHELLS, "/busybox/sh"))
    ]
    return "".join(branches) + "else\n\techo shell not found\n\texit 1\nfi\n\n"


@dataclass(frozen=True)
class Job:
    """One job. environment: of `KUBERNETES_POD_ANNOTATIONS_1`; annotations: the runner's own.

    entrypoint: FF_KUBERNETES_HONOR_ENTRYPOINT. collector: FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR. context: the
    securityContext of the build container. cancelled: gracefully, once the log has `cancel me`. secret: one that
    the runner's configuration mounts into every container, as all its volumes.
    """

    name: str
    script: str
    environment: str | None = "ci/tools"
    after_script: str = ""
    image: str = "flox/empty:1.0.0"
    annotations: Mapping[str, str] = field(default_factory=lambda: PUBLISHED)
    services: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    legacy: bool = False
    entrypoint: bool = False
    collector: bool = False
    cancelled: bool = False
    secret: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    pod: Mapping[str, Any] = field(default_factory=dict)
    poll_timeout: float = 60


@dataclass(frozen=True)
class Ended:
    """How a job ended. status: "success", "failed" (by its script) or "system failure"; log: what its author sees."""

    status: str
    code: int | None
    log: str
    seconds: float


def helper_image(path: Path) -> Path:
    """The archive of what stands for the runner's helper image: a shell and what the calls above need."""
    return image_with_a_shell(path, HELPER)


def image_with_a_shell(path: Path, name: str, entrypoint: Sequence[str] = ()) -> Path:
    """The archive of an image in which the runner's calls find all that they need."""
    applets: dict[str, images.Entry] = {f"bin/{applet}": ("busybox", 0o777) for applet in _HELPER_APPLETS}
    config = {"Env": [images.PATH], **({"Entrypoint": list(entrypoint)} if entrypoint else {})}
    images.write_archive(path, name, [images.busybox_layer(), images.layer(applets)], config)
    return path


class Executor:
    """Runs jobs on a cluster, each in a pod that is gone afterwards."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def run(self, job: Job) -> Ended:
        """Run a job to its end."""
        started = time.monotonic()
        self._cluster.apply(_pod(job))
        try:
            problem = self._wait(job)
            if problem:
                return Ended("system failure", None, problem, time.monotonic() - started)
            code, log = (self._legacy if job.legacy else self._attached)(job)
            return Ended("success" if code == 0 else "failed", code, log, time.monotonic() - started)
        finally:
            self._cluster.kubectl("delete", "pod", job.name, "--grace-period=1", "--wait", timeout=120)

    def _wait(self, job: Job) -> str:
        """Until the pod runs; else what the runner prints: its reason and the pod's warnings."""
        deadline = time.monotonic() + job.poll_timeout
        while True:
            pod = self._cluster.get("pod", job.name)
            status = pod["status"]
            if status.get("phase") == "Running" and _is_ready(status, "build"):
                return ""
            if status.get("phase") in ("Failed", "Succeeded"):
                return f"pod status is {status['phase']}\n{_terminated(status)}\n{self._warnings(job)}"
            if time.monotonic() > deadline:
                return f"timed out waiting for pod to start (last phase: {status.get('phase')})\n{self._warnings(job)}"
            time.sleep(0.3)

    def _warnings(self, job: Job) -> str:
        items = self._cluster.get("events", "--field-selector", f"involvedObject.name={job.name},type=Warning")["items"]
        return "\n".join(f"WARNING: {event['reason']}: {event['message']}" for event in items)

    def _attached(self, job: Job) -> tuple[int, str]:
        self._save(job, "build", "detect_shell_script", detect('"$@"'))
        self._stage(job, "helper", "prepare_script", 'echo "Running on $(hostname)..."')
        code = self._stage(job, "build", "step_script", job.script, self._cancel if job.cancelled else None)
        if job.after_script:
            self._stage(job, "build", "after_script", job.after_script)
        return code, self._exec(job, "helper", f"cat {LOG}").stdout

    def _legacy(self, job: Job) -> tuple[int, str]:
        strict = "set -o errexit\nset +o noclobber\n"  # without the lines that only the attach strategy reads
        done = self._exec(job, "build", f"{strict}: | eval {_quoted(job.script)}\nexit 0\n")
        return done.returncode, done.stdout + done.stderr

    def _cancel(self, job: Job) -> None:
        """TERM to what the script has started, as the runner finds it: by the command lines in /proc."""
        self._cluster.wait_until(lambda: "cancel me" in self._exec(job, "helper", f"cat {LOG}").stdout, 30)
        found = (
            'for each in /proc/[0-9]*/cmdline; do printf "$each "; cat -A "$each"; echo; done 2>/dev/null | '
            "sed 's|/proc/||; s|/cmdline||; s/\\^@/ /g' | "
            f"grep -e '{SCRIPTS}/step_script $' | awk '{{print $1}}'"
        )
        self._exec(job, "build", f"for it in $({found}); do kill -TERM $(cat /proc/$it/task/$it/children); done")

    def _stage(
        self, job: Job, container: str, name: str, body: str, meanwhile: Callable[[Job], None] | None = None
    ) -> int:
        path = f"{SCRIPTS}/{name}"
        self._save(job, container, name, _stage_script(body))
        if container == "build":
            marker = f'{{\\"command_exit_code\\": $ec, \\"script\\": \\"{path}\\"}}'
            line = (
                f"sh -c '(({SCRIPTS}/detect_shell_script {path}; ec=$?; if [ $ec -ne 0 ]; then echo; "
                f'echo "{marker}"; fi) 2>&1 | tee -a {LOG}) &\'\n'
            )
        else:
            line = f"sh {path} 2>&1 | tee -a {LOG}\n"
        with self._attached_to(job, container, line):
            if meanwhile is not None:
                meanwhile(job)
            return self._marker(job, path)

    def _marker(self, job: Job, path: str, timeout: float = 120) -> int:
        wanted = re.compile(rf'^{{"command_exit_code": (\d+), "script": "{re.escape(path)}"}}', re.MULTILINE)
        deadline = time.monotonic() + timeout
        while True:
            log = self._exec(job, "helper", f"cat {LOG}").stdout
            if found := wanted.findall(log):
                return int(found[-1])
            if time.monotonic() > deadline:
                raise AssertionError(f"{path} of {job.name} has no end within {timeout:.0f} s; its log:\n{log}")
            time.sleep(0.2)

    def _save(self, job: Job, container: str, name: str, text: str) -> None:
        path = f"{SCRIPTS}/{name}"
        script = f"set -eu\necho {_quoted(text)} > {path}.tmp\nchmod 777 {path}.tmp\nmv {path}.tmp {path}\n"
        done = self._exec(job, container, script)
        assert done.returncode == 0, done.stdout + done.stderr

    def _exec(self, job: Job, container: str, script: str) -> subprocess.CompletedProcess[str]:
        """`sh -c DETECT` with a script on its stdin, as each call of the runner."""
        argv = self._cluster.control_plane.kubectl("exec", "-i", job.name, "-c", container, "--", "sh", "-c", detect())
        return subprocess.run(argv, input=script, capture_output=True, text=True, timeout=60, check=False)

    @contextlib.contextmanager
    def _attached_to(self, job: Job, container: str, line: str) -> Iterator[None]:
        """A line into the stdin of the container's main process, which stays open when the attach ends."""
        argv = self._cluster.control_plane.kubectl("attach", "-i", "-q", job.name, "-c", container)
        none = subprocess.DEVNULL
        attach = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=none, stderr=none, text=True)
        try:
            assert attach.stdin is not None
            attach.stdin.write(line)
            attach.stdin.flush()
            yield
        finally:
            attach.kill()
            attach.communicate()


def _pod(job: Job) -> dict[str, Any]:
    annotations = {"job.runner.gitlab.com/id": "2", "project.runner.gitlab.com/id": "1", **job.annotations}
    if job.environment is not None:
        annotations["flox.dev/environment"] = job.environment
    mounts = [
        {"name": "repo", "mountPath": "/builds"},
        {"name": "scripts", "mountPath": SCRIPTS},
        {"name": "logs", "mountPath": LOGS},
    ]
    volumes: list[dict[str, Any]] = [{"name": name, "emptyDir": {}} for name in ("repo", "scripts", "logs")]
    if job.secret:
        mounts.append({"name": "token", "mountPath": "/var/run/secrets/flox.dev"})
        volumes.append({"name": "token", "secret": {"secretName": job.secret}})
    context: dict[str, Any] = {"capabilities": {"drop": ["NET_RAW"]}}
    common = {"securityContext": context, "volumeMounts": mounts}
    shell = {"stdin": True, "command": ["sh", "-c", detect()]}
    main = {"stdin": True, "args": shell["command"]} if job.entrypoint else shell
    ids = "> /builds/.gitlab-build-uid-gid; id -u >> /builds/.gitlab-build-uid-gid"
    collector = {"name": "init-build-uid-gid-collector", "image": job.image, "command": ["sh", "-c", ids], **common}
    variables = [{"name": "CI", "value": "true"}, {"name": "CI_PROJECT_DIR", "value": "/builds/g/p"}]
    permissions = f"touch {LOG} && (chmod 777 {LOG} || exit 0)"
    services = [{"name": name, "stdin": True, **common, **service} for name, service in job.services.items()]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "runtimeClassName": "flox",
        "activeDeadlineSeconds": 3601,
        "terminationGracePeriodSeconds": 1,
        "volumes": volumes,
        "initContainers": [
            *([collector] if job.collector else []),
            {"name": "init-permissions", "image": HELPER, "command": ["sh", "-c", permissions], **common},
        ],
        "containers": [
            {
                "name": "build",
                "image": job.image,
                **main,
                **common,
                "securityContext": {**context, **job.context},
                "env": variables,
            },
            {"name": "helper", "image": HELPER, **shell, **common},
            *services,
        ],
    }
    spec |= job.pod
    metadata = {"name": job.name, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _stage_script(body: str) -> str:
    """The script of a stage, with the JSON lines by which the runner follows it (shells/bash.go, `Finish`)."""
    return (
        "#!/usr/bin/env bash\n\ntrap 'exit 1' TERM\n\n"
        'start_json="{\\"script\\": \\"$0\\"}"\necho "$start_json"\n'
        "runner_script_trap() {\n\texit_code=$?\n"
        '\tout_json="{\\"command_exit_code\\": $exit_code, \\"script\\": \\"$0\\"}"\n\n'
        '\techo ""\n\techo "$out_json"\n\texit 0\n}\n\ntrap runner_script_trap EXIT\n'
        'case "$(set -o)" in *"pipefail"*) set -o pipefail;; esac; set -o errexit\nset +o noclobber\n'
        f"(trap 'exit 1' TERM; eval {_quoted(body)}) < /dev/null\nexit 0\n"
    )


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _is_ready(status: Mapping[str, Any], container: str) -> bool:
    return any(each["name"] == container and each["ready"] for each in status.get("containerStatuses", []))


def _terminated(status: Mapping[str, Any]) -> str:
    found = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    ends = [(each["name"], each["state"].get("terminated") or {}) for each in found]
    return "\n".join(f"container {name}: {json.dumps(end.get('message', ''))}" for name, end in ends if end)
