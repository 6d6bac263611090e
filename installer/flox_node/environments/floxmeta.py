"""Read one generation of an environment out of its floxmeta repository, before anything of it is built.

metadata.json                which generation is live: the last entry of `history`
<g>/env/manifest.lock        what generation g consists of
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import EnvironmentNotFoundError, NetworkError, UnsupportedError
from flox_node.environments.reference import Reference
from flox_node.host.children import Completed, run_group

_METADATA_VERSION = 2
_LARGEST_FILE = 8 << 20
# A helper reads the token from git's own environment, so that it stands in no argument and no file.
_CREDENTIALS = '!f() { echo username=oauth; echo "password=$FLOX_FLOXHUB_TOKEN"; }; f'


@dataclass(frozen=True)
class Generation:
    """A generation as it is at `commit`; `lock` is its manifest.lock."""

    number: int
    commit: str
    lock: Mapping[str, Any]


class Floxmeta:
    """The environment's branch, fetched as it is now into a private folder."""

    def __init__(self, git: str, folder: str, env: Mapping[str, str], deadline: Deadline) -> None:
        self._git = git
        self._folder = folder
        self._env = env
        self._deadline = deadline

    def read(self, reference: Reference, git_url: str) -> Generation:
        """Fetch the branch's tip and read the generation that `reference` asks for.

        Raises:
            EnvironmentNotFoundError: no such generation.
            NetworkError: the fetch failed.
            UnsupportedError: written by a Flox that is newer than this.
        """
        self._fetch(f"{git_url}/{reference.owner}/floxmeta", f"refs/heads/{reference.name}")
        commit = self._run("rev-parse", "FETCH_HEAD").stdout.decode("ascii").strip()
        metadata = _json(self._show(commit, "metadata.json"), reference)
        version = metadata.get("version")
        if version != _METADATA_VERSION:
            raise UnsupportedError(
                f"its metadata has version {version!r}, and this node reads {_METADATA_VERSION}.",
                remedy="Update the node's flox-node, or push the environment with a Flox of this age.",
            )
        number = reference.generation or _live(metadata, reference)
        lock = self._show(commit, f"{number}/env/manifest.lock")
        if lock is None:
            raise EnvironmentNotFoundError(
                f"{reference.environment} has no generation {number}.",
                remedy=f"`flox generations list -r {reference.environment}` shows those that it has.",
            )
        return Generation(number, commit, _json(lock, reference))

    def _fetch(self, url: str, branch: str) -> None:
        self._run("init", "--quiet", "--bare", self._folder, bare=False)
        done = self._run(
            "-c", f"credential.helper={_CREDENTIALS}",
            "-c", "protocol.allow=never", "-c", "protocol.http.allow=always", "-c", "protocol.https.allow=always",
            "-c", "http.followRedirects=false", "-c", "transfer.fsckObjects=true",
            "fetch", "--quiet", "--no-tags", "--depth=1", url, f"{branch}:{branch}", check=False,
        )  # fmt: skip
        if done.returncode:
            # The ref and the permission were there a moment ago (see floxhub.tip): what fails now is the way to it.
            raise NetworkError("FloxHub's repository could not be fetched: " + _last_line(done.stderr))

    def _show(self, commit: str, path: str) -> bytes | None:
        done = self._run("cat-file", "blob", f"{commit}:{path}", check=False)
        return None if done.returncode else done.stdout

    def _run(self, *arguments: str, bare: bool = True, check: bool = True) -> Completed:
        where = (f"--git-dir={self._folder}",) if bare else ()
        command = (self._git, *where, *arguments)
        done = run_group(command, env=self._env, timeout=self._deadline.left(), limit=_LARGEST_FILE)
        if done.timed_out:
            self._deadline.left()
        if check and done.returncode:
            raise NetworkError("FloxHub's repository could not be read: " + _last_line(done.stderr))
        return done


def _live(metadata: Mapping[str, Any], reference: Reference) -> int:
    try:
        return int(metadata["history"][-1]["current_generation"])
    except (LookupError, TypeError, ValueError) as error:
        raise EnvironmentNotFoundError(
            f"{reference.environment} has no live generation.", remedy="Push a generation of it."
        ) from error


def _json(data: bytes | None, reference: Reference) -> Mapping[str, Any]:
    try:
        value = json.loads(data or b"")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnsupportedError(f"the metadata of {reference.environment} on FloxHub is damaged.")
    return value


def _last_line(stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return ascii(lines[-1][:200]) + "." if lines else "git said nothing."
