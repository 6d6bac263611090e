"""A program's next release reaches a node in two ways: as a generation of its environment, and as an image.

Both have the same script, the same Python of Debian, the same Deployment and the same probe. Each clock starts when the
release is there as packages (in a binary cache on loopback; as .deb files in the build's context, so that nothing is
downloaded) and ends when the program itself answers with its number. The image is built as people write it, and on the
layers of the one before: the packages are installed anew only where they have changed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bed import cache, debian, flox, images, registry, store
from tests.bed.buildah import BUILD, Buildah
from tests.bed.program import PORT, Program, Release, program
from tests.cluster.cluster import Cluster
from tests.cluster.daemonset import FloxCluster
from tests.cluster.objects import Object
from tests.doubles.hub import catalog_package, lockfile

CONTAINERD = "2.1"
ENVIRONMENT = ("demo", "program")
_CACHE_PORT = 8081
_SUITE = "trixie"
_DEBIAN = [
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "debconf", "debianutils", "diffutils", "dpkg"),
    *("findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "mawk", "ncurses-base", "passwd"),
    *("perl-base", "sed", "tar", "util-linux"),
]
_PYTHON = "python3.13"
_BASE = "localhost/debian"
_DOCKERFILE = f"""\
FROM {_BASE}
ARG PYTHON
RUN --mount=type=bind,source=packages,target=/packages dpkg --install /packages/*.deb
COPY web /usr/local/bin/web
CMD ["web"]
"""
# Asks until the answer is the wanted one; a program that is being replaced may hang up.
_UNTIL = """
import sys, time, urllib.request
url, wanted = sys.argv[1:]
while True:
    try:
        if urllib.request.urlopen(url, timeout=1).read().decode().strip() == wanted:
            break
    except OSError:
        pass
    time.sleep(0.02)
"""
_NODE_PORTS = {"environment": 30081, "image": 30082}


@dataclass(frozen=True)
class Update:
    """How long each step took, in seconds, in order; the last one ends with the answer of the new release."""

    steps: dict[str, float]

    @property
    def seconds(self) -> float:
        """From the first step to the answer."""
        return sum(self.steps.values())


class Updates:
    """One node with flox-node, a hub, a registry and the program's first release in both ways."""

    def __init__(self, flox_cluster: FloxCluster, made: Program, folder: Path) -> None:
        self._flox = flox_cluster
        self._cluster = flox_cluster.cluster
        self._node = self._cluster.nodes[0]
        self._program = made
        self._context = folder / "context"
        self._folder = folder
        self._buildah = Buildah(folder / "buildah")
        self._node.serve(registry.command(folder / "registry"))
        self._make_base()

    def start(self) -> None:
        """The first release, both ways; what they need of the node is there afterwards."""
        first = self._program.releases[0]
        self._publish(first)
        self._build(first)
        self._push(first)
        pods: dict[str, Object] = {
            "environment": {
                "annotations": {flox.ENVIRONMENT: "/".join(ENVIRONMENT)},
                "image": "flox/empty:1.0.0",
                "runtimeClassName": "flox",
            },
            "image": {"image": _reference(first)},
        }
        for name, pod in pods.items():
            self._cluster.apply(*_objects(name, **pod))
            self._answered(name, first)

    def by_environment(self, release: Release) -> Update:
        """The release as a new generation, and a restart of the Deployment."""
        steps = _Steps()
        self._publish(release)
        steps.done("generation")
        self._cluster.kubectl("rollout", "restart", "deployment/environment")
        self._answered("environment", release)
        steps.done("rollout")
        return Update(steps.seconds)

    def by_image(self, release: Release) -> Update:
        """The release as an image: built on the layers of the one before, pushed, named in the Deployment, pulled."""
        steps = _Steps()
        self._build(release)
        steps.done("build")
        self._push(release)
        steps.done("push")
        self._cluster.kubectl("set", "image", "deployment/image", f"main={_reference(release)}")
        self._answered("image", release)
        steps.done("pull and rollout")
        return Update(steps.seconds)

    def remove(self) -> None:
        """The Deployments and what belongs to them."""
        for name in _NODE_PORTS:
            self._cluster.kubectl("delete", "deployment,service", name, "--ignore-not-found", "--wait", timeout=120)

    def _publish(self, release: Release) -> None:
        packages = [catalog_package("web", {"out": release.web}), catalog_package("python3", {"out": release.python})]
        self._flox.hub.publish(*ENVIRONMENT, lockfile(packages))

    def _make_base(self) -> None:
        """The base image, and in the context the packages that make a Python of it."""
        made = cache.artefact("update-base", {"packages": [_DEBIAN, _PYTHON], "revision": 1}, _unpack)
        self._buildah.commit(_BASE, made / "debian", f"--env={images.PATH}", "--env=DEBIAN_FRONTEND=noninteractive")
        shutil.copytree(made / "packages", self._context / "packages")
        (self._context / "Dockerfile").write_text(_DOCKERFILE)

    def _build(self, release: Release) -> None:
        store.write_program(self._context / "web", [f"#!/usr/bin/{_PYTHON} -IB", release.script])
        version = f"--build-arg=PYTHON={release.interpreter}"
        self._buildah(*BUILD, version, "--tag", _reference(release), self._context)

    def _push(self, release: Release) -> None:
        pushing = Buildah(self._buildah.folder, self._cluster.command(of=self._node))  # where the registry is
        pushing("push", "--quiet", "--tls-verify=false", _reference(release))

    def _answered(self, name: str, release: Release) -> None:
        url = f"http://{self._node.address}:{_NODE_PORTS[name]}/"
        done = self._cluster.run(sys.executable, "-c", _UNTIL, url, f"release {release.number}", timeout=300)
        if done.returncode:
            raise RuntimeError(f"{name} does not answer: {done.stderr}\n{self._cluster.logs()}")


class _Steps:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = now - self._since
        self._since = now


def _unpack(folder: Path) -> None:
    """A Debian as small as images start from, and beside it the packages of a Python."""
    debs, root = debian.archives(_SUITE, _DEBIAN), folder / "debian"
    root.mkdir()
    debian.unpack(_SUITE, _DEBIAN, root)
    debian.register(debs, root)
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("dash")
    (root / "tmp").mkdir(exist_ok=True)
    (folder / "packages").mkdir()
    for deb in {*debian.archives(_SUITE, [_PYTHON])} - {*debs}:
        shutil.copy(deb, folder / "packages")


@contextmanager
def updates(cluster: Cluster) -> Iterator[Updates]:
    """The program's first release on a cluster of one node, both ways, while the context lasts."""
    made = program()
    with tempfile.TemporaryDirectory(dir=cache.folder(), prefix="updates-") as folder:
        flox_cluster = FloxCluster(cluster)
        node = cluster.nodes[0]
        node.serve(
            [sys.executable, "-m", "http.server", str(_CACHE_PORT), "--bind=127.0.0.1", f"--directory={made.cache_dir}"]
        )
        policy = _policy(made)
        flox_cluster.patch("configmap/flox-node", [{"op": "add", "path": "/data/policy.toml", "value": policy}])
        flox_cluster.apply()
        flox_cluster.labelled()
        running = Updates(flox_cluster, made, Path(folder))
        running.start()
        yield running
        running.remove()


def _policy(made: Program) -> str:
    """The tests' policy, with the cache of the releases beside the common one.

    The hub is asked for every sandbox. By default what it said some seconds ago is still good for the next one, and
    here one deployment follows another as it never does in life.
    """
    text = flox.hub_policy()
    text = text.replace('/cache"]', f'/cache", "http://127.0.0.1:{_CACHE_PORT}"]')
    text = text.replace("trusted_public_keys = [", f'trusted_public_keys = ["{made.public_key}", ')
    return f"{text}[realise]\nfreshness_s = 0\n"


def _reference(release: Release) -> str:
    return f"{registry.ADDRESS}/program:{release.number}"


def _objects(name: str, *, image: str, annotations: Object | None = None, **spec: object) -> tuple[Object, Object]:
    probe = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1}
    container = {"name": "main", "image": image, "command": ["web"], "readinessProbe": probe}
    labels = {"app": name}
    deployment: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations or {}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
            },
        },
    }
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": PORT, "nodePort": _NODE_PORTS[name]}]},
    }
    return deployment, service
