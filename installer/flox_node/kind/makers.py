"""Who makes the cluster: kind, or minikube; they differ in their words alone. Pure: command lines and answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flox_node.errors import RefusedError
from flox_node.host.terminal import Answer
from flox_node.kind.cluster_file import MARK, OURS, Shape
from flox_node.kind.engine import Engine

Command = tuple[str, ...]


class Maker(Protocol):
    """The words of one program that makes clusters of containers on a laptop."""

    @property
    def program(self) -> str:
        """Its name on the PATH."""

    @property
    def oldest(self) -> tuple[int, int]:
        """The first release that is good enough."""

    def version(self) -> Command:
        """Asks for the program's version, which is the first `vN.N` in its answer."""

    def clusters(self) -> Command:
        """Asks which clusters there are."""

    def parse_clusters(self, answer: Answer) -> list[str]:
        """Their names."""

    def context(self, shape: Shape) -> str:
        """What the cluster is called in the kubeconfig."""

    def create(self, shape: Shape, config: str) -> Command:
        """Makes the cluster. config: the path of kind's cluster file."""

    def nodes(self, shape: Shape) -> Command:
        """Asks for the names of the node's containers, a line each."""

    def delete(self, shape: Shape) -> Command:
        """Removes the cluster with all it holds."""


@dataclass(frozen=True)
class Kind:
    """https://kind.sigs.k8s.io"""

    engine: Engine
    program: str = "kind"
    oldest: tuple[int, int] = (0, 27)

    def version(self) -> Command:
        """See `Maker`."""
        return (self.program, "version")

    def clusters(self) -> Command:
        """See `Maker`."""
        return (*self.engine.environment, self.program, "get", "clusters")

    def parse_clusters(self, answer: Answer) -> list[str]:
        """See `Maker`. Where there is none, kind says so on its standard error."""
        return answer.stdout.split()

    def context(self, shape: Shape) -> str:
        """See `Maker`."""
        return f"kind-{shape.name}"

    def create(self, shape: Shape, config: str) -> Command:
        """See `Maker`."""
        image = (f"--image={shape.node_image}",) if shape.node_image else ()
        words = (self.program, "create", "cluster", f"--name={shape.name}", f"--config={config}", "--wait=120s", *image)
        return (*self.engine.environment, *words)

    def nodes(self, shape: Shape) -> Command:
        """See `Maker`."""
        return (*self.engine.environment, self.program, "get", "nodes", f"--name={shape.name}")

    def delete(self, shape: Shape) -> Command:
        """See `Maker`."""
        return (*self.engine.environment, self.program, "delete", "cluster", f"--name={shape.name}")


@dataclass(frozen=True)
class Minikube:
    """https://minikube.sigs.k8s.io with its drivers docker and podman; its nodes run systemd, as kind's do."""

    engine: Engine
    program: str = "minikube"
    oldest: tuple[int, int] = (1, 34)

    def version(self) -> Command:
        """See `Maker`."""
        return (self.program, "version", "--short")

    def clusters(self) -> Command:
        """See `Maker`."""
        return (self.program, "profile", "list", "--output=json")

    def parse_clusters(self, answer: Answer) -> list[str]:
        """See `Maker`. A profile that is broken is there, too."""
        try:
            found = json.loads(answer.stdout)
        except ValueError:
            return []
        groups = [found.get(group) or [] for group in ("valid", "invalid")] if isinstance(found, dict) else []
        return [str(profile.get("Name")) for group in groups for profile in group if isinstance(profile, dict)]

    def context(self, shape: Shape) -> str:
        """See `Maker`."""
        return shape.name

    def create(self, shape: Shape, config: str) -> Command:
        """See `Maker`."""
        release = (f"--kubernetes-version=v{shape.kubernetes.removeprefix('v')}",) if shape.kubernetes else ()
        return (
            *(self.program, "start", f"--profile={shape.name}", f"--driver={self.engine.name}"),
            *("--container-runtime=containerd", f"--nodes={shape.nodes}", *release),
            f"--extra-config=kubelet.node-labels={MARK}={OURS}",
        )

    def nodes(self, shape: Shape) -> Command:
        """See `Maker`. Its nodes' containers are called as its nodes."""
        return ("kubectl", f"--context={shape.name}", "get", "nodes", "--output=name")

    def delete(self, shape: Shape) -> Command:
        """See `Maker`."""
        return (self.program, "delete", f"--profile={shape.name}")


def maker(name: str, engine: Engine) -> Maker:
    """The maker called `name`.

    Raises:
        RefusedError: it cannot make nodes that this command can turn into Flox nodes.
    """
    if name == "k3d":
        raise RefusedError(
            "k3d's nodes run k3s as their first process, without systemd: containerd cannot be restarted there without "
            "the node, so nothing on it could be registered and undone safely.",
            remedy="Use kind or minikube; on k3s as a service of a machine flox-node works.",
        )
    if name == "minikube":
        if engine.name not in ("docker", "podman"):
            raise RefusedError(f"minikube has no driver for {engine.name}.", remedy="Use kind, or docker or podman.")
        return Minikube(engine)
    return Kind(engine)


def names(lines: str) -> Sequence[str]:
    """Nodes of an answer to `Maker.nodes`: without kubectl's kind in front, and without kind's load balancer."""
    found = [line.strip().rpartition("/")[2] for line in lines.splitlines() if line.strip()]
    return [name for name in found if not name.endswith("-external-load-balancer")]
