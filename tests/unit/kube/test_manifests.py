"""`daemonset/`, and what `flox-node manifests` makes of it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from kubernetes_validate import utils

from flox_node import __version__
from flox_node.errors import UsageError
from flox_node.kube import manifests, names
from flox_node.kube.manifests import Options
from tests import kustomize
from tests.bed import golang
from tests.kustomize import DAEMONSET, RENDERED, Object

FOLDERS = ["base", *sorted(f"overlays/{path.name}" for path in (DAEMONSET / "overlays").iterdir())]
PROGRAM = Path(sys.executable).with_name("flox-node")
KNOWN = {int(version.split(".")[1]) for version in utils.all_versions()}
MINORS = sorted(minor for minor in KNOWN if minor >= manifests.MINIMUM_MINOR)
# The Prometheus operator's own: what of monitoring.coreos.com/v1 we use, strictly.
POD_MONITOR = {
    "type": "object",
    "required": ["podMetricsEndpoints", "selector"],
    "additionalProperties": False,
    "properties": {
        "selector": {
            "additionalProperties": False,
            "properties": {"matchLabels": {"additionalProperties": {"type": "string"}}},
        },
        "podMetricsEndpoints": {
            "type": "array",
            "items": {
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "path": {"type": "string"},
                    "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                },
            },
        },
    },
}


def of(items: list[Object], kind: str) -> Object:
    (item,) = (item for item in items if item["kind"] == kind)
    return item


# The files.


def test_the_rendered_file_is_the_base() -> None:
    assert list(yaml.safe_load_all(RENDERED.read_text())) == kustomize.objects(DAEMONSET / "base")


def test_the_rendered_file_is_what_kubectl_makes_of_the_base(kubectl: Path) -> None:
    assert RENDERED.read_text() == kustomize.HEADER + kustomize.text(kubectl, DAEMONSET / "base"), "make manifests"


@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_renders_as_we_do(kubectl: Path, folder: str) -> None:
    told = list(yaml.safe_load_all(kustomize.text(kubectl, DAEMONSET / folder)))
    assert told == kustomize.objects(DAEMONSET / folder)


def test_kubectl_takes_the_components_on_top_of_an_overlay(kubectl: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    components = ["pod-monitor", "uninstall"]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "sortOptions": {"order": "fifo"},
        "resources": [os.path.relpath(DAEMONSET / "overlays/canary", mine)],
        "components": [os.path.relpath(DAEMONSET / "components" / name, mine) for name in components],
    }
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    told = list(yaml.safe_load_all(kustomize.text(kubectl, mine)))

    assert told == kustomize.objects(mine)
    assert told[-1]["kind"] == "PodMonitor"
    assert "--mode=uninstall" in kustomize.text(kubectl, mine)


@pytest.fixture(scope="module")
def different() -> list[Object]:
    """Every object of every overlay, but each only once."""
    every = [item for folder in FOLDERS for item in kustomize.objects(DAEMONSET / folder)]
    return list({json.dumps(item, sort_keys=True): item for item in every}.values())


@pytest.fixture
def schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read anew for each object is read once."""
    monkeypatch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))


@pytest.mark.parametrize("minor", MINORS)
def test_every_object_of_every_overlay_has_the_schema_of_kubernetes(
    schemas: None, different: list[Object], minor: int
) -> None:
    for item in different:
        utils.validate(item, f"1.{minor}", strict=True)  # raises for an unknown kind too, of which its program warns


def test_the_schemas_are_those_of_every_supported_minor() -> None:
    assert list(range(31, 38)) == MINORS


@pytest.mark.parametrize("minor", MINORS)
def test_the_schemas_are_strict(schemas: None, minor: int) -> None:
    daemonset = of(manifests.objects(), "DaemonSet")
    daemonset["spec"]["template"]["spec"]["hostPid"] = True  # misspelt
    with pytest.raises(utils.ValidationError, match="hostPid"):
        utils.validate(daemonset, f"1.{minor}", strict=True)
    with pytest.raises(utils.SchemaNotFoundError):
        utils.validate({"apiVersion": "v1", "kind": "Nonsense"}, f"1.{minor}", strict=True)


def test_the_pod_monitor_asks_the_port_that_has_metrics() -> None:
    found = manifests.objects(Options(pod_monitor=True))
    monitor, pods = of(found, "PodMonitor"), of(found, "DaemonSet")["spec"]["template"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    jsonschema.validate(monitor["spec"], POD_MONITOR)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == pods["spec"]["containers"][0]["ports"][0]["name"]


def test_the_names_are_those_of_the_code() -> None:
    found = manifests.objects()
    assert {item["metadata"].get("namespace") for item in found} <= {names.NAMESPACE, None}
    assert of(found, "Namespace")["metadata"]["name"] == names.NAMESPACE
    for kind in ("DaemonSet", "ConfigMap", "ServiceAccount", "PriorityClass", "ClusterRole"):
        assert of(found, kind)["metadata"]["name"] == names.NAME
    runtime_class = of(found, "RuntimeClass")
    assert runtime_class["metadata"]["name"] == runtime_class["handler"] == names.RUNTIME_CLASS
    assert runtime_class["scheduling"]["nodeSelector"] == {names.ENABLED: "true"}


def test_the_token_is_confined_before_there_is_a_pod_that_has_it() -> None:
    kinds = [item["kind"] for item in manifests.objects()]
    assert kinds[0] == "Namespace"
    assert kinds[-1] == "DaemonSet"
    assert kinds.count("ValidatingAdmissionPolicy") == kinds.count("ValidatingAdmissionPolicyBinding") == 3


def test_the_image_is_of_this_version() -> None:
    for container in of(manifests.objects(), "DaemonSet")["spec"]["template"]["spec"]["containers"]:
        assert container["image"] == f"flox-node:{__version__}"


def test_the_wheel_carries_the_bytes_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The wheel's build compiles the shim, on a machine that may have no Go of its own.
    monkeypatch.setenv("PATH", f"{Path(golang.go()).parent}:{os.environ['PATH']}")
    (wheel,) = WheelBuilder(str(DAEMONSET.parent)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("flox_node/kube/flox-node.yaml") == RENDERED.read_bytes()
        monitor = DAEMONSET / "components/pod-monitor/pod-monitor.yaml"
        assert archive.read("flox_node/kube/pod-monitor.yaml") == monitor.read_bytes()


# What is adapted.


def test_without_options_nothing_is_changed() -> None:
    assert manifests.objects() == list(yaml.safe_load_all(RENDERED.read_text()))


def test_adapting_leaves_what_it_was_given_as_it_was() -> None:
    before = manifests.objects()
    manifests.adapted(before, Options(image="other", mode="uninstall", settings="", overhead={"cpu": "1"}))
    assert before == manifests.objects()


@pytest.mark.parametrize(
    ("options", "image"),
    [
        (Options(registry="registry.example.com/mirror/"), f"registry.example.com/mirror/flox-node:{__version__}"),
        (Options(image="mine:1"), "mine:1"),
        (Options(image="mine@sha256:abc", registry="registry.example.com"), "registry.example.com/mine@sha256:abc"),
    ],
)
def test_both_containers_have_the_image(options: Options, image: str) -> None:
    containers = of(manifests.objects(options), "DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert [container["image"] for container in containers] == [image, image]


def test_the_mode_is_an_argument_of_both_containers() -> None:
    found = manifests.objects(Options(mode="uninstall"))
    assert found == kustomize.objects(DAEMONSET / "overlays/uninstall")


def test_nodes_are_selected_beside_what_the_base_selects() -> None:
    found = manifests.objects(Options(node_selector={"flox.dev/canary": "true"}))
    assert found == kustomize.objects(DAEMONSET / "overlays/canary")


def test_the_runtime_class_gets_overhead_and_tolerations() -> None:
    toleration = {"key": "gpu", "operator": "Exists"}
    runtime_class = of(
        manifests.objects(Options(overhead={"memory": "16Mi"}, tolerations=[toleration])), "RuntimeClass"
    )
    assert runtime_class["overhead"] == {"podFixed": {"memory": "16Mi"}}
    assert runtime_class["scheduling"] == {"nodeSelector": {names.ENABLED: "true"}, "tolerations": [toleration]}


def test_settings_and_policy_are_texts_of_the_config_map() -> None:
    data = of(manifests.objects(Options(settings="adopt = true\n", policy="[realise]\nwait_s = 60\n")), "ConfigMap")
    assert data["data"] == {"settings.toml": "adopt = true\n", "policy.toml": "[realise]\nwait_s = 60\n"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options(settings="adopt = "), "settings.toml is no TOML"),
        (Options(policy="nonsense = 1"), "nonsense"),
        (Options(mode="unistall"), "'unistall' is no mode"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Options, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        manifests.objects(options)


def test_as_yaml_it_is_the_same_and_texts_stay_readable() -> None:
    settings = 'adopt = true\n\n[rollout]\nshare = "1"\n'
    selector = {"a": "true", "b": "1e3", "c": "0x1F", "d": "", "e": "null", "f": "1_000"}
    found = manifests.objects(Options(settings=settings, node_selector=selector))
    text = manifests.as_yaml(found)
    assert list(yaml.safe_load_all(text)) == found
    assert "  settings.toml: |\n    adopt = true\n\n    [rollout]\n" in text
    assert 'b: "1e3"' in text  # a number to Go's YAML, a text to Python's


def test_kubectl_reads_that_yaml_as_we_do(kubectl: Path, tmp_path: Path) -> None:
    found = manifests.objects(Options(node_selector={"a": "true", "b": "1e3", "c": "0x1F", "d": "", "e": "on"}))
    (tmp_path / "all.yaml").write_text(manifests.as_yaml(found))
    (tmp_path / "kustomization.yaml").write_text("resources: [all.yaml]\nsortOptions: {order: fifo}\n")
    assert list(yaml.safe_load_all(kustomize.text(kubectl, tmp_path))) == found


# The command.


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "manifests", *arguments], capture_output=True, text=True, check=False)


def test_the_command_prints_what_its_options_make_of_the_base(tmp_path: Path) -> None:
    settings, policy = tmp_path / "settings.toml", tmp_path / "policy.toml"
    settings.write_text("adopt = true\n")
    policy.write_text("[realise]\nwait_s = 60\n")

    done = run(
        *("--image", "mine:1", "--registry", "registry.example.com", "--mode", "uninstall", "--pod-monitor"),
        *("--node-selector", "a=b", "--node-selector", "c=", "--overhead", "cpu=5m", "--overhead", "memory=16Mi"),
        *("--toleration", "gpu", "--toleration", "b=c:NoSchedule", "--toleration", "d.example.com/e:NoExecute"),
        *("--settings", settings, "--policy", policy),
    )

    assert done.stderr == ""
    assert list(yaml.safe_load_all(done.stdout)) == manifests.objects(
        Options(
            image="mine:1",
            registry="registry.example.com",
            mode="uninstall",
            pod_monitor=True,
            node_selector={"a": "b", "c": ""},
            overhead={"cpu": "5m", "memory": "16Mi"},
            tolerations=[
                {"operator": "Exists", "key": "gpu"},
                {"operator": "Equal", "key": "b", "value": "c", "effect": "NoSchedule"},
                {"operator": "Exists", "key": "d.example.com/e", "effect": "NoExecute"},
            ],
            settings="adopt = true\n",
            policy="[realise]\nwait_s = 60\n",
        )
    )


@pytest.mark.parametrize(
    "arguments", [("--node-selector", "a"), ("--overhead", "=1"), ("--toleration", ":"), ("--settings", "/none")]
)
def test_a_word_that_cannot_be_meant_is_a_usage_error(arguments: tuple[str, str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert arguments[1] in done.stderr


def test_the_pull_policy_is_that_of_both_containers() -> None:
    def policies(options: Options) -> set[str | None]:
        pods = of(manifests.objects(options), "DaemonSet")["spec"]["template"]["spec"]
        return {container.get("imagePullPolicy") for container in pods["containers"]}

    assert policies(Options(image_pull_policy="Never")) == {"Never"}
    assert policies(Options()) == {None}
    with pytest.raises(UsageError, match="Sometimes"):
        manifests.objects(Options(image_pull_policy="Sometimes"))
