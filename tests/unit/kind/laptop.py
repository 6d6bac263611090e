"""A laptop of the tests: programs that answer as docker, nerdctl, podman, kind and kubectl do, and what they were told.

The answers are the programs' own: docker 29.1, nerdctl 2.1, podman 5.4, kind 0.33, kubectl 1.37.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from flox_node.host.terminal import Answer
from flox_node.kind.cluster_file import MARK, OURS

GIB = 1 << 30
_VERSIONS = {
    "docker": "Docker version 29.1.0, build 360952c",
    "nerdctl": "nerdctl version 2.1.6",
    "finch": "finch version v1.13.0",
    "podman": "podman version 5.4.2",
}


def docker_info(**changes: object) -> str:
    info = {"ServerVersion": "29.1.0", "CgroupVersion": "2", "MemTotal": 16 * GIB, "SecurityOptions": ["name=seccomp"]}
    return json.dumps({**info, **changes})


def podman_info(*, rootless: bool = False) -> str:
    return json.dumps({"host": {"cgroupVersion": "v2", "memTotal": 16 * GIB, "security": {"rootless": rootless}}})


class FakeTerminal:
    """What is installed, what the engine says of itself, and which clusters there are with which marks."""

    def __init__(
        self, *engines: str, info: Answer | None = None, programs: Sequence[str] = ("kind", "kubectl")
    ) -> None:
        self.installed = {*engines, *programs}
        self.info = info
        self.kind_version = "kind v0.33.0 go1.26.2 linux/amd64"
        self.kubectl_version = "Client Version: v1.37.2\nKustomize Version: v5.8.0\n"
        self.called: dict[str, str] = {}  # program -> what it says of itself, where that is not its own
        self.ports: dict[str, str] = {}  # node -> what of this machine leads to the demo
        self.clusters: dict[str, bool] = {}  # name -> whether its nodes carry our mark
        self.images = {"flox-node:1.0.0": "sha256:1111"}
        self.loaded: dict[str, str] = {}  # node -> identity of the image there
        self.stopped: set[str] = set()
        self.api_answers = True
        self.failing: str = ""  # the first words of a command that fails
        self.done: list[str] = []

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.installed else None

    def ask(self, argv: Sequence[str], timeout: float = 60.0) -> Answer:
        words = [word for word in argv if not word.startswith(("KIND_", "env"))]
        match words:
            case [engine, "-v"]:
                return Answer(0, self.called.get(engine, _VERSIONS[engine]) + "\n", "")
            case [_, "port", node, "30080/tcp"]:
                if node in self.ports:
                    return Answer(0, self.ports[node] + "\n", "")
                return Answer(1, "", "Error: No public port '30080/tcp' published\n")
            case [engine, "info", *_]:
                return self.info or Answer(0, podman_info() if engine == "podman" else docker_info(), "")
            case ["kind", "version"]:
                return Answer(0, self.kind_version + "\n", "")
            case ["kubectl", "version", "--client"]:
                return Answer(0, self.kubectl_version, "")
            case ["kind", "get", "clusters"]:
                if not self.clusters:
                    return Answer(0, "", "No kind clusters found.\n")
                return Answer(0, "".join(f"{name}\n" for name in self.clusters), "")
            case ["kind", "get", "nodes", name]:
                cluster = name.removeprefix("--name=")
                if cluster not in self.clusters:
                    return Answer(0, "", f'No kind nodes found for cluster "{cluster}".\n')
                return Answer(0, f"{cluster}-control-plane\n{cluster}-external-load-balancer\n", "")
            case [_, "image", "inspect", _, _, image]:
                known = self.images.get(image)
                return Answer(0, known + "\n", "") if known else Answer(1, "\n", f"Error: No such image: {image}\n")
            case [_, "inspect", _, "{{.State.Running}}", node]:
                return Answer(0, f"{'false' if node in self.stopped else 'true'}\n", "")
            case [_, "exec", node, "cat", _]:
                found = self.loaded.get(node)
                return Answer(0, found + "\n", "") if found else Answer(1, "", "cat: No such file or directory\n")
            case [_, "exec", node, "crictl", "inspecti", "-q", _]:
                return Answer(0, "", "") if node in self.loaded else Answer(1, "", "no such image\n")
            case [_, "exec", _, "containerd", "config", "dump"]:
                return Answer(0, 'version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n', "")
            case ["kubectl", context, "get", "nodes", *_]:
                cluster = context.removeprefix("--context=kind-")
                if not self.api_answers or cluster not in self.clusters:
                    return Answer(1, "", "The connection to the server 127.0.0.1:6443 was refused\n")
                labels = {MARK: OURS} if self.clusters[cluster] else {}
                item = {"metadata": {"name": f"{cluster}-control-plane", "labels": labels}}
                return Answer(0, json.dumps({"items": [item]}), "")
            case ["kubectl", _, "get", "deployment", *_]:
                return Answer(0, "1 1", "")
        raise AssertionError(f"nobody answers {shlex.join(argv)}")

    def do(self, argv: Sequence[str], stdin: Path | None = None) -> int:
        line = shlex.join(("flox-node", *argv[3:]) if argv[1:3] == ("-m", "flox_node") else argv)
        self.done.append(line + (" <FILE" if stdin else ""))
        if self.failing and line.startswith(self.failing):
            return 1
        words = [word for word in argv if not word.startswith(("KIND_", "env"))]
        match words:
            case ["kind", "create", "cluster", name, config, *_]:
                assert "kind: Cluster" in Path(config.removeprefix("--config=")).read_text()
                self.clusters[name.removeprefix("--name=")] = True
            case ["kind", "delete", "cluster", name]:
                del self.clusters[name.removeprefix("--name=")]
            case [_, "exec", node, "sh", "-c", script]:
                # A folder that the nodes of kind and of minikube have.
                assert script.endswith(" >/var/lib/flox-node.image")
                self.loaded[node] = script.split()[1]
            case [_, "start", node]:
                self.stopped.discard(node)
        return 0
