"""`flox-node manifests`: the DaemonSet and its objects as YAML, for GitOps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flox_node.cli.output import Result, command, read_text

if TYPE_CHECKING:
    from flox_node.kube.api import Object
    from flox_node.kube.manifests import Options

Image = Annotated[
    str | None, typer.Option("--image", help="The image of both containers.", show_default="flox-node:<version>")
]
Registry = Annotated[
    str | None,
    typer.Option("--registry", help="What goes in front of the image, such as registry.example.com/mirror."),
]
NodeSelector = Annotated[
    list[str] | None,
    typer.Option("--node-selector", metavar="KEY=VALUE", help="Work only on nodes with this label; repeatable."),
]
Overhead = Annotated[
    list[str] | None,
    typer.Option("--overhead", metavar="RESOURCE=QUANTITY", help="What each Flox pod costs besides; repeatable."),
]
Tolerations = Annotated[
    list[str] | None,
    typer.Option(
        "--toleration", metavar="KEY[=VALUE][:EFFECT]", help="A taint that every Flox pod tolerates; repeatable."
    ),
]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE", help="settings.toml of the ConfigMap.")
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="The policy of all nodes, as `flox-node policy apply` takes it."),
]
PodMonitor = Annotated[
    bool, typer.Option("--pod-monitor", help="Have the Prometheus operator fetch the metrics of the pods.")
]
ImagePullPolicy = Annotated[
    str | None,
    typer.Option("--image-pull-policy", help="Always, IfNotPresent or Never.", show_default="the kubelet's own"),
]
Mode = Annotated[str, typer.Option("--mode", help="What the DaemonSet does with nodes: install or uninstall.")]
_TOLERATION = re.compile(r"(?P<key>[\w./-]+)(?:=(?P<value>[\w.-]*))?(?::(?P<effect>\w+))?")


def mount(app: typer.Typer) -> None:
    """Add the command to the top level."""
    command(app, example="flox-node manifests --registry registry.example.com/mirror > flox-node.yaml")(manifests)


def manifests(
    image: Image = None,
    registry: Registry = None,
    node_selector: NodeSelector = None,
    overhead: Overhead = None,
    toleration: Tolerations = None,
    settings: SettingsFile = None,
    policy: PolicyFile = None,
    pod_monitor: PodMonitor = False,
    image_pull_policy: ImagePullPolicy = None,
    mode: Mode = "install",
) -> Result:
    """Print the DaemonSet and all that it needs as YAML for `kubectl apply -f -` or a GitOps repository."""
    from flox_node.kube import manifests as kube

    chosen = options(
        image, registry, node_selector, overhead, toleration, settings, policy, pod_monitor, image_pull_policy, mode
    )
    found = kube.objects(chosen)
    return Result({"objects": found}, kube.as_yaml(found).encode())


def options(
    image: str | None,
    registry: str | None,
    node_selector: list[str] | None,
    overhead: list[str] | None,
    tolerations: list[str] | None,
    settings: Path | None,
    policy: Path | None,
    pod_monitor: bool,
    image_pull_policy: str | None,
    mode: str,
) -> Options:
    """What the words of the command line mean.

    Raises:
        UsageError: one of them cannot be meant.
    """
    from flox_node.kube.manifests import Options

    return Options(
        image=image,
        registry=registry,
        node_selector=_pairs("--node-selector", node_selector),
        overhead=_pairs("--overhead", overhead),
        tolerations=[_toleration(word) for word in tolerations or ()],
        settings=read_text(settings) if settings else None,
        policy=read_text(policy) if policy else None,
        pod_monitor=pod_monitor,
        image_pull_policy=image_pull_policy,
        mode=mode,
    )


def _pairs(option: str, words: list[str] | None) -> dict[str, str]:
    from flox_node.errors import UsageError

    pairs = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} {word} is no KEY=VALUE.")
        pairs[key] = value
    return pairs


def _toleration(word: str) -> Object:
    from flox_node.errors import UsageError

    found = _TOLERATION.fullmatch(word)
    if found is None:
        raise UsageError(f"--toleration {word} is no KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT.")
    said = {name: text for name, text in found.groupdict().items() if text is not None}
    return {"operator": "Equal" if "value" in said else "Exists", **said}
