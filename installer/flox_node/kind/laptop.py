"""Bringing a cluster up on a laptop, looking at it, and taking it away again.

Each step looks first and does only what lacks, so that a second run repairs and changes nothing that is right. What
changes something is a command line of a program that its user knows, and `dry_run` prints it instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flox_node.containerd.config import schema
from flox_node.errors import OutsideError, RefusedError
from flox_node.host.terminal import Answer, Terminal
from flox_node.kind.archive import names_in
from flox_node.kind.cluster_file import MARK, NODE_PORT, OURS, Baked, Shape, cluster_file
from flox_node.kind.engine import Engine, complaints, require_usable
from flox_node.kind.makers import Maker, names
from flox_node.names import ENABLED

DEMO = Path(__file__).with_name("demo.yaml")  # a link to docs/examples in the source tree, a file in the wheel
_LOADED = "/var/lib/flox-node.image"  # on a node, of kind or minikube: which image was imported last
_SELF = (sys.executable, "-m", "flox_node")
_ADVICE = {
    "kind": "Install kind 0.27 or newer: https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "minikube": "Install minikube 1.34 or newer: https://minikube.sigs.k8s.io/docs/start/",
    "kubectl": "Install kubectl 1.28 or newer: https://kubernetes.io/docs/tasks/tools/",
}
_OLDEST_KUBECTL = (1, 28)  # older ones are too far from what kind makes today


@dataclass(frozen=True)
class Image:
    """The product's image: its name, and an archive of it where no engine has to be asked (`--archive`)."""

    name: str
    archive: Path | None = None


@dataclass
class Laptop:
    """What the steps need. say: one line of progress; dry_run: print commands that change something, run none."""

    terminal: Terminal
    engine: Engine
    maker: Maker
    shape: Shape
    architecture: str
    say: Callable[[str], None]
    dry_run: bool = False
    printed: list[str] = field(default_factory=list)

    @property
    def context(self) -> str:
        """The cluster's name in the kubeconfig."""
        return self.maker.context(self.shape)

    def ask(self, *argv: str) -> Answer:
        """See `Terminal.ask`."""
        return self.terminal.ask(argv)

    def do(self, *argv: str, stdin: Path | None = None) -> None:
        """Run a command that changes something, or print it.

        Raises:
            OutsideError: it failed; what it said stands above.
        """
        shown = shlex.join(("flox-node", *argv[len(_SELF) :]) if argv[: len(_SELF)] == _SELF else argv)
        line = f"{shown} < {shlex.quote(str(stdin))}" if stdin else shown
        self.printed.append(line)
        self.say(f"$ {line}")
        if not self.dry_run and (code := self.terminal.do(argv, stdin)):
            raise OutsideError(
                f"`{shown}` failed with {code}.", remedy="What it said stands above; the same command goes on."
            )

    def kubectl(self, *words: str) -> tuple[str, ...]:
        """kubectl's command line for this cluster and no other."""
        return ("kubectl", f"--context={self.context}", *words)


def up(laptop: Laptop, image: Image, *, baked: Baked | None = None, demo: bool = True) -> None:
    """From nothing, or from whatever is there of it, to a cluster whose Flox pods run.

    Raises:
        RefusedError: a cluster of that name is not ours; the engine cannot carry one.
        OutsideError: a step failed.
    """
    require_usable(laptop.engine, laptop.shape.kubernetes)
    for complaint in complaints(laptop.engine, laptop.shape.nodes):
        laptop.say(f"warning: {complaint}")
    identity = _identity(laptop, image)
    if laptop.shape.name in laptop.maker.parse_clusters(laptop.ask(*laptop.maker.clusters())):
        _start(laptop)
        require_ours(laptop)
        if laptop.shape.nodes > (there := len(_nodes(laptop))):
            laptop.say(f"warning: {there} of {laptop.shape.nodes} nodes are there; only a new cluster gets more.")
    else:
        if not identity and not laptop.dry_run:
            raise _no_image(laptop, image)
        _create(laptop, baked)
    name = image.name if image.archive else laptop.engine.name_on_nodes(image.name)
    lacking = [node for node in _nodes(laptop) if not _has(laptop, node, name, identity)]
    if lacking:
        with _archive(laptop, image, identity) as file:
            for node in lacking:
                _load(laptop, node, file, identity)
    laptop.do(
        *_SELF, "cluster", "install", f"--context={laptop.context}", f"--image={name}", "--image-pull-policy=Never"
    )
    if demo:
        laptop.do(*laptop.kubectl("apply", f"--filename={DEMO}"))
        wait = ("wait", "--for=condition=Available", "--timeout=10m", "deployment", "--selector=flox.dev/demo=web")
        laptop.do(*laptop.kubectl(*wait))


def demo_port(laptop: Laptop) -> int:
    """Of this machine, where the demo answers: as the cluster was made, which may be another than is asked for now."""
    nodes = () if laptop.dry_run else _nodes(laptop)
    for node in nodes:
        said = laptop.ask(laptop.engine.name, "port", node, f"{NODE_PORT}/tcp").stdout.split()
        if said and said[0].rpartition(":")[2].isdecimal():
            return int(said[0].rpartition(":")[2])
    return laptop.shape.port


def down(laptop: Laptop) -> bool:
    """Remove the cluster. Returns whether there was one.

    Raises:
        RefusedError: it is not ours.
    """
    if laptop.shape.name not in laptop.maker.parse_clusters(laptop.ask(*laptop.maker.clusters())):
        return False
    require_ours(laptop)
    laptop.do(*laptop.maker.delete(laptop.shape))
    return True


@dataclass(frozen=True)
class Status:
    """What is there. nodes: name -> whether a Flox pod may run there."""

    cluster: bool
    ours: bool
    context: str
    nodes: dict[str, bool]
    demo: bool


def status(laptop: Laptop) -> Status:
    """Look at the cluster and change nothing."""
    if laptop.shape.name not in laptop.maker.parse_clusters(laptop.ask(*laptop.maker.clusters())):
        return Status(cluster=False, ours=False, context=laptop.context, nodes={}, demo=False)
    labels = _labels(laptop)
    nodes = {name: found.get(ENABLED) == "true" for name, found in (labels or {}).items()}
    wait = (
        "get",
        "deployment",
        "--selector=flox.dev/demo=web",
        "--output=jsonpath={.items[*].status.availableReplicas}",
    )
    demo = bool(laptop.ask(*laptop.kubectl(*wait)).stdout.strip())
    return Status(cluster=True, ours=_is_ours(labels), context=laptop.context, nodes=nodes, demo=demo)


def require_ours(laptop: Laptop) -> None:
    """Raises RefusedError unless every node carries our mark."""
    labels = _labels(laptop)
    if labels is None:
        raise RefusedError(
            f"The cluster {laptop.shape.name} does not answer, so it cannot be told whether this command made it.",
            remedy=f"`{shlex.join(laptop.maker.delete(laptop.shape))}` removes it, if it is yours to remove.",
        )
    if not _is_ours(labels):
        raise RefusedError(
            f"There is a cluster {laptop.shape.name} that this command did not make; it is left alone.",
            remedy=f"Choose another --name, or use `flox-node cluster install --context {laptop.context}`.",
        )


def require_tools(terminal: Terminal, maker: Maker) -> dict[str, str]:
    """The programs that are needed and their versions.

    Raises:
        RefusedError: one is not here, or too old.
    """
    found = {}
    kubectl = ("kubectl", "version", "--client")
    for program, argv, oldest in (
        (maker.program, maker.version(), maker.oldest),
        ("kubectl", kubectl, _OLDEST_KUBECTL),
    ):
        if terminal.which(program) is None:
            raise RefusedError(f"{program} is not on the PATH.", remedy=_ADVICE[program])
        version = re.search(r"v(\d+)\.(\d+)[^\s]*", terminal.ask(argv).stdout)
        if version is None:
            raise OutsideError(f"`{' '.join(argv)}` does not say which version it is.", remedy=_ADVICE[program])
        if (int(version[1]), int(version[2])) < oldest:
            raise RefusedError(f"{program} {version[0]} is too old.", remedy=_ADVICE[program])
        found[program] = version[0]
    return found


def _create(laptop: Laptop, baked: Baked | None) -> None:
    text = cluster_file(laptop.shape, baked)
    with tempfile.TemporaryDirectory(prefix="flox-node-") as folder:
        file = Path(folder, "cluster.yaml")
        file.write_text(text, encoding="utf-8")
        laptop.do(*laptop.maker.create(laptop.shape, str(file)))


def _start(laptop: Laptop) -> None:
    """Start what a reboot of the laptop stopped."""
    for node in _nodes(laptop):
        if laptop.ask(laptop.engine.name, "inspect", "--format", "{{.State.Running}}", node).stdout.strip() == "false":
            laptop.do(laptop.engine.name, "start", node)
    laptop.do(*laptop.kubectl("wait", "--for=condition=Ready", "--timeout=3m", "nodes", "--all"))


def _nodes(laptop: Laptop) -> Sequence[str]:
    found = names(laptop.ask(*laptop.maker.nodes(laptop.shape)).stdout)
    if not found and laptop.dry_run:  # nothing was made, so nothing is there
        suffixes = ["control-plane", *("worker" + (str(n) if n > 1 else "") for n in range(1, laptop.shape.nodes))]
        return [f"{laptop.shape.name}-{suffix}" for suffix in suffixes]
    return found


def _identity(laptop: Laptop, image: Image) -> str:
    """What tells this build of the image from another of the same name; "" where the engine does not have it."""
    if image.archive is None:
        return laptop.ask(laptop.engine.name, "image", "inspect", "--format", "{{.Id}}", image.name).stdout.strip()
    try:
        with image.archive.open("rb") as source:
            held = names_in(source)
            source.seek(0)
            identity = hashlib.file_digest(source, "sha256").hexdigest()
    except (OSError, ValueError, tarfile.TarError) as error:
        raise RefusedError(
            f"The archive {image.archive} cannot be read: {getattr(error, 'strerror', None) or error}.",
            remedy="`docker save --platform linux/amd64 --output FILE IMAGE` writes one.",
        ) from error
    if held and image.name not in held:
        raise RefusedError(
            f"{image.archive} holds {', '.join(sorted(held))}, not {image.name}.",
            remedy=f"Say which: --image {min(held)}.",
        )
    return identity


@contextmanager
def _archive(laptop: Laptop, image: Image, identity: str) -> Iterator[Path]:
    """The image as a file; what an engine was asked for is gone afterwards."""
    if image.archive is not None:
        yield image.archive
        return
    if not identity and not laptop.dry_run:
        raise _no_image(laptop, image)
    with tempfile.TemporaryDirectory(prefix="flox-node-") as folder:
        file = Path(folder, "image.tar")
        laptop.do(*laptop.engine.save(image.name, str(file), laptop.architecture))
        yield file


def _no_image(laptop: Laptop, image: Image) -> RefusedError:
    engine = laptop.engine.name
    return RefusedError(
        f"{engine} has no image {image.name}.",
        remedy=f"`make image ARCH={laptop.architecture} BUILDER={engine}` builds it, `{engine} pull` fetches it, "
        "--archive FILE takes one from a file.",
    )


def _has(laptop: Laptop, node: str, name: str, identity: str) -> bool:
    """Whether a node has this very image; where no engine can tell which one it would be, any of its name."""
    engine = laptop.engine.name
    loaded = laptop.ask(engine, "exec", node, "cat", _LOADED).stdout.strip()
    known = not identity or loaded == identity
    return known and not laptop.ask(engine, "exec", node, "crictl", "inspecti", "-q", name).returncode


def _load(laptop: Laptop, node: str, file: Path, identity: str) -> None:
    engine = laptop.engine.name
    dump = laptop.ask(engine, "exec", node, "containerd", "config", "dump").stdout
    # Only the platform asked for: an archive may name others that it does not hold.
    laptop.do(
        *(engine, "exec", "-i", node, "ctr", "--namespace=k8s.io", "images", "import", "--digests"),
        *(f"--platform=linux/{laptop.architecture}", f"--snapshotter={_snapshotter(dump)}", "-"),
        stdin=file,
    )
    laptop.do(engine, "exec", node, "sh", "-c", f"echo {shlex.quote(identity)} >{_LOADED}")


def _snapshotter(dump: str) -> str:
    """The one that the node's CRI unpacks images for; an image unpacked for another cannot be started."""
    try:
        plugins = tomllib.loads(dump).get("plugins", {})
    except tomllib.TOMLDecodeError:
        return "overlayfs"
    for table in (plugins.get(schema.CRI_IMAGES, {}), plugins.get(schema.CRI_GRPC, {}).get("containerd", {})):
        if isinstance(table, dict) and table.get("snapshotter"):
            return str(table["snapshotter"])
    return "overlayfs"


def _labels(laptop: Laptop) -> dict[str, dict[str, str]] | None:
    answer = laptop.ask(*laptop.kubectl("get", "nodes", "--output=json", "--request-timeout=10s"))
    try:
        items = json.loads(answer.stdout)["items"] if not answer.returncode else None
        return None if items is None else {i["metadata"]["name"]: i["metadata"].get("labels", {}) for i in items}
    except (ValueError, KeyError, TypeError):
        return None


def _is_ours(labels: dict[str, dict[str, str]] | None) -> bool:
    return bool(labels) and all(found.get(MARK) == OURS for found in (labels or {}).values())
