"""GitLab's runner as far as a runtime meets it: the calls of its Kubernetes executor for one job, over kubectl.

What the real one (gitlab-runner 19, executors/kubernetes) does, and this does too: the pod's shape, `restartPolicy:
Never`, the same `sh -c DETECT` for build and helper, scripts written by `exec` as a here-quoted echo and renamed, a
stage started by one line into the stdin of the container's main process, its end read from a JSON line in the log file,
the pod's warnings printed. It gives up after `poll_timeout` seconds, and at once where the pod's phase is final. It
does not notice a build container that ended while the helper runs.
Left out here: git, artifacts and cache, which are stages of the helper (`pipeline.py` has them), and GitLab itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.bed import images
from tests.bed.processes import PATIENCE_S
from tests.cluster.cluster import Cluster

JOB = "1-2"
HELPER = "flox.test/gitlab-helper:1"
HELPER_APPLETS = ("chmod", "mv", "tee", "rm", "sed", "grep")
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

    entrypoint: FF_KUBERNETES_HONOR_ENTRYPOINT. collector: FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR. dumb_init:
    FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR. cancelled: gracefully, once the log has `cancel me`. volumes: what the
    runner's configuration mounts into every container, by mount path. before, after: the helper's stages around the
    script by their names, the latter after one that succeeded. helper: its image. context: the securityContext of the
    build container. pod: further fields of the pod's spec.
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
    dumb_init: bool = False
    cancelled: bool = False
    volumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    helper: str = HELPER
    context: Mapping[str, Any] = field(default_factory=dict)
    pod: Mapping[str, Any] = field(default_factory=dict)
    poll_timeout: float = 60
    stage_timeout: float = PATIENCE_S


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
    applets: dict[str, images.Entry] = {f"bin/{applet}": ("busybox", 0o777) for applet in HELPER_APPLETS}
    config = {"Env": [images.PATH], **({"Entrypoint": list(entrypoint)} if entrypoint else {})}
    images.write_archive(path, name, [images.busybox_layer(), images.layer(applets)], config)
    return path


class _Log:
    """A job's log, followed from its start to the job's end by one exec, as the runner follows it."""

    def __init__(self, argv: Sequence[str | Path]) -> None:
        self.text = ""
        self._more = threading.Condition()
        none = subprocess.DEVNULL
        self._process = subprocess.Popen(argv, stdin=none, stdout=subprocess.PIPE, stderr=none, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._reader.join()
        self._process.communicate()

    def wait(self, pattern: str, timeout: float) -> re.Match[str]:
        """The first place of a pattern, once the log has it."""
        found: list[re.Match[str]] = []

        def has() -> bool:
            found.extend(re.finditer(pattern, self.text, re.MULTILINE))
            return bool(found)

        with self._more:
            if not self._more.wait_for(has, timeout):
                raise AssertionError(f"no {pattern} within {timeout:.0f} s in the log:\n{self.text}")
        return found[0]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.text += line
                self._more.notify_all()


class Executor:
    """Runs jobs on a cluster, each in a pod that is gone afterwards."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def run(self, job: Job) -> Ended:
        """Run a job to its end."""
        started = time.monotonic()
        with self._pod(job):
            problem = self._wait(job)
            if problem:
                return Ended("system failure", None, problem, time.monotonic() - started)
            code, log = (self._legacy if job.legacy else self._attached)(job)
            return Ended("success" if code == 0 else "failed", code, log, time.monotonic() - started)

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

    def told(self, job: Job, reason: str) -> str:
        """Start a job and wait for an event of its pod, which the runner prints with FF_PRINT_POD_EVENTS; its text."""
        found: list[str] = []

        def tells() -> bool:
            fields = f"involvedObject.name={job.name},reason={reason}"
            found.extend(event["message"] for event in self._cluster.get("events", "--field-selector", fields)["items"])
            return bool(found)

        # A pod whose environment is on its way takes its time to go, and nobody here waits for that.
        with self._pod(job, "--wait=false"):
            self._cluster.wait_until(tells, what=f"{reason} is told of {job.name}")
        return found[0]

    def abandon(self, job: Job) -> float:
        """Delete a job's pod once its script has said `cancel me`: a forced cancellation. The deletion's seconds."""
        with self._pod(job):
            assert not (problem := self._wait(job)), problem
            self._save(job, "build", "detect_shell_script", detect('"$@"'))
            with self._followed(job) as log, self._started(job, "build", "step_script", job.script):
                log.wait("cancel me", job.stage_timeout)
                started = time.monotonic()
                self._cluster.kubectl("delete", "pod", job.name, "--wait")
        return time.monotonic() - started

    @contextlib.contextmanager
    def _pod(self, job: Job, *how: str) -> Iterator[None]:
        self._cluster.apply(pod_of(job))
        try:
            yield
        finally:
            self._cluster.kubectl(
                "delete", "pod", job.name, "--grace-period=1", "--ignore-not-found", *how, timeout=120
            )

    def _attached(self, job: Job) -> tuple[int, str]:
        self._save(job, "build", "detect_shell_script", detect('"$@"'))
        with self._followed(job) as log:
            code = self._stages(job, log, {"prepare_script": 'echo "Running on $(hostname)..."', **job.before})
            if code == 0:
                code = self._stage(job, log, "build", "step_script", job.script)
                if job.after_script:
                    self._stage(job, log, "build", "after_script", job.after_script)
            if code == 0:
                code = self._stages(job, log, job.after)
            return code, log.text

    def _followed(self, job: Job) -> _Log:
        return _Log(self._exec_argv(job, "helper", f"while :; do cat; sleep 0.1; done < {LOG}"))

    def _stages(self, job: Job, log: _Log, scripts: Mapping[str, str]) -> int:
        codes = (self._stage(job, log, "helper", name, script) for name, script in scripts.items())
        return next(filter(None, codes), 0)

    def _legacy(self, job: Job) -> tuple[int, str]:
        strict = "set -o errexit\nset +o noclobber\n"  # without the lines that only the attach strategy reads
        done = self._exec(job, "build", f"{strict}: | eval {quoted(job.script)}\nexit 0\n")
        return done.returncode, done.stdout + done.stderr

    def _cancel(self, job: Job, log: _Log) -> None:
        """TERM to what the script has started, as the runner finds it: by the command lines in /proc."""
        log.wait("cancel me", job.stage_timeout)
        found = (
            'for each in /proc/[0-9]*/cmdline; do printf "$each "; cat -A "$each"; echo; done 2>/dev/null | '
            "sed 's|/proc/||; s|/cmdline||; s/\\^@/ /g' | "
            f"grep -e '{SCRIPTS}/step_script $' | awk '{{print $1}}'"
        )
        self._exec(job, "build", f"for it in $({found}); do kill -TERM $(cat /proc/$it/task/$it/children); done")

    def _stage(self, job: Job, log: _Log, container: str, name: str, body: str) -> int:
        path = f"{SCRIPTS}/{name}"
        with self._started(job, container, name, body):
            if job.cancelled and name == "step_script":
                self._cancel(job, log)
            ended = rf'^{{"command_exit_code": (\d+), "script": "{re.escape(path)}"}}$'
            return int(log.wait(ended, job.stage_timeout)[1])

    @contextlib.contextmanager
    def _started(self, job: Job, container: str, name: str, body: str) -> Iterator[None]:
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
            yield

    def _save(self, job: Job, container: str, name: str, text: str) -> None:
        path = f"{SCRIPTS}/{name}"
        script = f"set -eu\necho {quoted(text)} > {path}.tmp\nchmod 777 {path}.tmp\nmv {path}.tmp {path}\n"
        done = self._exec(job, container, script)
        assert done.returncode == 0, done.stdout + done.stderr

    def _exec(self, job: Job, container: str, script: str) -> subprocess.CompletedProcess[str]:
        """`sh -c DETECT` with a script on its stdin, as each call of the runner."""
        argv = self._exec_argv(job, container, detect())
        return subprocess.run(argv, input=script, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def _exec_argv(self, job: Job, container: str, script: str) -> Sequence[str | Path]:
        return self._cluster.control_plane.kubectl("exec", "-i", job.name, "-c", container, "--", "sh", "-c", script)

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


def pod_of(job: Job) -> dict[str, Any]:
    """The pod that the runner makes for a job."""
    annotations = {"job.runner.gitlab.com/id": "2", "project.runner.gitlab.com/id": "1", **job.annotations}
    if job.environment is not None:
        annotations["flox.dev/environment"] = job.environment
    mounts = [
        {"name": "repo", "mountPath": "/builds"},
        {"name": "scripts", "mountPath": SCRIPTS},
        {"name": "logs", "mountPath": LOGS},
    ]
    volumes: list[dict[str, Any]] = [{"name": name, "emptyDir": {}} for name in ("repo", "scripts", "logs")]
    for number, (path, source) in enumerate(job.volumes.items()):
        mounts.append({"name": f"own-{number}", "mountPath": path})
        volumes.append({"name": f"own-{number}", **source})
    context: dict[str, Any] = {"capabilities": {"drop": ["NET_RAW"]}}
    common = {"securityContext": context, "volumeMounts": mounts}
    shell: dict[str, Any] = {"stdin": True, "command": ["sh", "-c", detect()]}
    main = {"stdin": True, "args": shell["command"]} if job.entrypoint else shell
    ids = "> /builds/.gitlab-build-uid-gid; id -u >> /builds/.gitlab-build-uid-gid"
    collector = {"name": "init-build-uid-gid-collector", "image": job.image, "command": ["sh", "-c", ids], **common}
    given = {"CI": "true", "CI_PROJECT_DIR": "/builds/g/p", **job.variables}
    variables = [{"name": name, "value": value} for name, value in given.items()]
    permissions = f"touch {LOG} && (chmod 777 {LOG} || exit 0)"
    if job.dumb_init:
        permissions += f" && cp /usr/bin/dumb-init {SCRIPTS}"
        shell["command"] = [f"{SCRIPTS}/dumb-init", "--", *shell["command"]]
    services = [{"name": name, "stdin": True, **common, **service} for name, service in job.services.items()]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "runtimeClassName": "flox",
        "activeDeadlineSeconds": 3601,
        "terminationGracePeriodSeconds": 1,
        "volumes": volumes,
        "initContainers": [
            *([collector] if job.collector else []),
            {"name": "init-permissions", "image": job.helper, "command": ["sh", "-c", permissions], **common},
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
            {"name": "helper", "image": job.helper, **shell, **common},
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
        f"(trap 'exit 1' TERM; eval {quoted(body)}) < /dev/null\nexit 0\n"
    )


def quoted(text: str) -> str:
    """As the runner quotes what it evaluates (helpers.ShellEscape): `$'...'`, which is bash's and not POSIX'."""
    special = {"\\": r"\\", "'": r"\'", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
    bytes_ = (chr(byte) for byte in text.encode())
    return "$'" + "".join(special.get(c) or (c if " " <= c <= "~" else f"\\x{ord(c):02X}") for c in bytes_) + "'"


def _is_ready(status: Mapping[str, Any], container: str) -> bool:
    return any(each["name"] == container and each["ready"] for each in status.get("containerStatuses", []))


def _terminated(status: Mapping[str, Any]) -> str:
    found = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    ends = [(each["name"], each["state"].get("terminated") or {}) for each in found]
    return "\n".join(f"container {name}: {json.dumps(end.get('message', ''))}" for name, end in ends if end)
