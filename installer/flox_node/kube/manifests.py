"""The objects that make a cluster's nodes Flox nodes: `daemonset/flox-node.yaml`, adapted to a cluster.

What is adapted here can be adapted with kustomize too (`daemonset/overlays`); the rest of an object is its user's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flox_node import settings
from flox_node.errors import UsageError
from flox_node.kube.api import Object
from flox_node.state import policy_text

MINIMUM_MINOR = 31
"""Kubernetes 1.31 is the first to tell an admission policy which node a pod's token belongs to."""
MODES = ("install", "uninstall")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
# Links to daemonset/ in the source tree, files in the wheel.
_OBJECTS = Path(__file__).with_name("flox-node.yaml")
_POD_MONITOR = Path(__file__).with_name("pod-monitor.yaml")


@dataclass(frozen=True)
class Options:
    """What a cluster may want to be different.

    image: instead of `flox-node:<version>`; `registry` goes in front of either ("registry.example.com/mirror").
    node_selector: labels of the nodes that the DaemonSet works on, beside Linux.
    overhead, tolerations: of the RuntimeClass, so of every Flox pod.
    settings, policy: the text of settings.toml and policy.toml.
    mode: what the DaemonSet does, "install" or "uninstall".
    image_pull_policy: "Never" where the image is brought onto the nodes; the event of a pod then says that it lacks.
    """

    image: str | None = None
    registry: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    overhead: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Object] = ()
    settings: str | None = None
    policy: str | None = None
    mode: str = "install"
    pod_monitor: bool = False
    image_pull_policy: str | None = None


def objects(options: Options = Options()) -> list[Object]:
    """The objects in the order in which they are applied: the namespace first, the DaemonSet after all it needs.

    Raises:
        UsageError: an option cannot be meant.
    """
    monitors = _load(_POD_MONITOR) if options.pod_monitor else []
    return adapted([*_load(_OBJECTS), *monitors], options)


def adapted(base: Sequence[Object], options: Options) -> list[Object]:
    """A copy of objects with `options` put into them.

    Raises:
        UsageError: an option cannot be meant.
    """
    if options.mode not in MODES:
        raise UsageError(f"{options.mode!r} is no mode; there are {' and '.join(MODES)}.")
    if options.image_pull_policy not in (None, *PULL_POLICIES):
        raise UsageError(f"{options.image_pull_policy!r} is none of {', '.join(PULL_POLICIES)}.")
    result = copy.deepcopy(list(base))
    for item in result:
        if item["kind"] == "DaemonSet":
            _adapt_pods(item["spec"]["template"]["spec"], options)
        elif item["kind"] == "RuntimeClass":
            _adapt_runtime_class(item, options)
        elif item["kind"] == "ConfigMap":
            _adapt_settings(item["data"], options)
    return result


def as_yaml(items: Sequence[Object]) -> str:
    """The objects as one file for kubectl and GitOps; long texts stay readable."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # Quoted is also what YAML 1.1 calls a text and Go a number ("1e3").
        style = "|" if "\n" in value else '"' if value[:1] in tuple("0123456789.+-") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(items, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


@functools.cache  # YAML is slow to read, and `adapted` makes a copy
def _load(path: Path) -> list[Object]:
    import yaml

    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def _adapt_pods(pods: Object, options: Options) -> None:
    for container in pods["containers"]:
        image = options.image or container["image"]
        container["image"] = f"{options.registry.rstrip('/')}/{image}" if options.registry else image
        container["args"] = [
            f"--mode={options.mode}" if word.startswith("--mode=") else word for word in container["args"]
        ]
        if options.image_pull_policy:
            container["imagePullPolicy"] = options.image_pull_policy
    pods["nodeSelector"] |= options.node_selector


def _adapt_runtime_class(runtime_class: Object, options: Options) -> None:
    if options.overhead:
        runtime_class["overhead"] = {"podFixed": dict(options.overhead)}
    if options.tolerations:
        runtime_class["scheduling"]["tolerations"] = list(options.tolerations)


def _adapt_settings(data: dict[str, str], options: Options) -> None:
    if options.settings is not None:
        settings.parse(options.settings)
        data["settings.toml"] = options.settings
    if options.policy is not None:
        policy_text.applied(options.policy, None)
        data["policy.toml"] = options.policy
