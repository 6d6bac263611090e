"""The laptop's container engine: which one kind will use, whether it works, and how it hands out an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.errors import OutsideError, RefusedError
from flox_node.host.terminal import Answer, Terminal

CHOICE = "KIND_EXPERIMENTAL_PROVIDER"
"""The environment variable by which kind is told an engine; without it the first that is there counts."""
# In kind's own order (pkg/cluster/provider.go, pkg/cluster/internal/providers/nerdctl/util.go), with what each calls
# itself: the `docker` of the package podman-docker is podman, and kind does not take it for docker.
_KNOWN = {"docker": "Docker", "nerdctl": "nerdctl", "finch": "finch", "podman": "podman"}
_SAVES_ONE_PLATFORM = (28, 0)  # `docker save --platform` came with Docker 28
_NEEDS_CGROUPS_2 = (1, 35)  # the kubelet's failCgroupV1 is true from there on
_GIB = 1 << 30


@dataclass(frozen=True)
class Engine:
    """One that answers. name: the program; kind: whose answers it gives ("docker", "nerdctl", "podman")."""

    name: str
    version: str
    cgroup_version: int
    memory: int
    rootless: bool

    @property
    def environment(self) -> tuple[str, ...]:
        """What goes in front of a call of kind, so that it takes this engine and no other."""
        return () if self.name == "docker" else ("env", f"{CHOICE}={self.name}")

    def save(self, image: str, file: str, architecture: str) -> tuple[str, ...]:
        """The command that writes one platform of an image into a file.

        An engine whose store is containerd's writes every platform that an image's index names otherwise, whether it
        has it or not, and attestations; nodes then refuse the archive (https://github.com/kubernetes-sigs/kind/issues/3795).
        """
        if self.name == "podman":  # its store holds one platform an image
            return ("podman", "save", "--format=docker-archive", f"--output={file}", image)
        # An older docker cannot be asked, and its own store holds one platform an image.
        asked = self.name != "docker" or _numbers(self.version) >= _SAVES_ONE_PLATFORM
        platform = [f"--platform=linux/{architecture}"] if asked else []
        return (self.name, "save", *platform, f"--output={file}", image)

    def name_on_nodes(self, image: str) -> str:
        """What an image that this engine built is called on a node; podman puts a host in front of short names."""
        host = image.partition("/")[0]
        named = "/" in image and ("." in host or ":" in host or host == "localhost")
        return f"localhost/{image}" if self.name == "podman" and not named else image


def find(terminal: Terminal, environment: Mapping[str, str]) -> Engine:
    """The engine that kind will use here.

    Raises:
        RefusedError: there is none, or not the one that the environment names.
        OutsideError: it is there and does not work; the text says why and what helps.
    """
    choice = environment.get(CHOICE, "")
    for name in (choice,) if choice in _KNOWN else _KNOWN:
        if terminal.which(name) and (version := _version(name, terminal.ask((name, "-v")))):
            return _examined(name, version, terminal)
    if choice:
        raise RefusedError(
            f"{CHOICE} asks for {choice!r}, which is not here.", remedy=f"Install it, or unset {CHOICE}."
        )
    raise RefusedError(
        "There is no container engine: neither docker nor nerdctl, finch or podman is on the PATH.",
        remedy="Install Docker (https://docs.docker.com/get-docker/) or podman, then run the command again.",
    )


def complaints(engine: Engine, nodes: int) -> list[str]:
    """What is worth knowing before the work, though it does not forbid it."""
    wanted = (1 + nodes) * _GIB
    found = []
    if engine.memory and engine.memory < wanted:
        found.append(
            f"{engine.name} has {engine.memory / _GIB:.1f} GiB of memory; {nodes} nodes want {wanted / _GIB:.0f} GiB."
        )
    return found


def require_usable(engine: Engine, kubernetes: str = "") -> None:
    """Raises RefusedError where no Flox node can run, whatever is tried. kubernetes: the release asked for, or ""."""
    if engine.cgroup_version == 1 and (not kubernetes or _numbers(kubernetes) >= _NEEDS_CGROUPS_2):
        raise RefusedError(
            f"{engine.name} runs on version 1 of cgroups; Kubernetes 1.35 and newer does not start on it.",
            remedy="Boot the machine with systemd.unified_cgroup_hierarchy=1, or use a newer Docker Desktop, or an "
            "older Kubernetes (--kubernetes 1.34.0), then run the command again.",
        )
    if engine.rootless:
        raise RefusedError(
            f"{engine.name} runs rootless: the nodes have no real root, and without it no store can be mounted.",
            remedy="Use a rootful engine (`docker context use default`, `podman machine set --rootful`), then run "
            "the command again.",
        )


def _examined(name: str, version: str, terminal: Terminal) -> Engine:
    answer = terminal.ask((name, "info", "--format", "json" if name == "podman" else "{{json .}}"))
    try:
        info = json.loads(answer.stdout)
    except ValueError:
        info = None
    if answer.returncode or not isinstance(info, dict) or info.get("ServerErrors"):
        raise _does_not_work(name, answer, info if isinstance(info, dict) else {})
    if name == "podman":
        host = _dict(info.get("host"))
        rootless = _dict(host.get("security")).get("rootless") is True
        return Engine(name, version, _cgroup(host.get("cgroupVersion")), _int(host.get("memTotal")), rootless)
    options = info.get("SecurityOptions") or []
    rootless = any("name=rootless" in str(option).split(",") for option in options)
    return Engine(name, version, _cgroup(info.get("CgroupVersion")), _int(info.get("MemTotal")), rootless)


def _does_not_work(name: str, answer: Answer, info: Mapping[str, Any]) -> OutsideError:
    errors = info.get("ServerErrors") or []
    said = " ".join((" ".join(map(str, errors)) or answer.stderr or answer.stdout or "nothing").split())
    if "permission denied" in said.lower():
        return OutsideError(
            f"{name} does not let this user in: {said}",
            remedy=f"Add the user to the group {name} (`sudo usermod -aG {name} $USER`), log in again.",
        )
    if "no space left" in said.lower():
        return OutsideError(f"{name}'s disk is full: {said}", remedy=f"`{name} system prune` makes room.")
    start = "podman machine start" if name == "podman" else "Start Docker Desktop, or `sudo systemctl start docker`"
    return OutsideError(f"{name} is installed, but does not answer: {said}", remedy=f"{start}, then try again.")


def _version(name: str, answer: Answer) -> str:
    """ "28.2.2" of `Docker version 28.2.2, build e6534b4`, `nerdctl version 2.0.4`, `podman version 5.4.2`."""
    words = answer.stdout.split()
    if answer.returncode or len(words) < 3 or words[:2] != [_KNOWN[name], "version"]:
        return ""
    return words[2].rstrip(",")


def _numbers(version: str) -> tuple[int, int]:
    parts = version.lstrip("v").split(".")
    return _int(parts[0]), _int(parts[1]) if len(parts) > 1 else 0


def _cgroup(value: object) -> int:
    return _int(str(value).removeprefix("v"))


def _int(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
