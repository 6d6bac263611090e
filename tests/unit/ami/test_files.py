"""The printed files for node groups: what the tools that read them say of them, and what autoscalers make of them."""

from __future__ import annotations

import email.message
import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hcl2
import jsonschema
import pytest
import yaml

from flox_node.eks import files
from flox_node.errors import RefusedError, UsageError
from flox_node.kube.manifests import MINIMUM_MINOR
from flox_node.settings import STARTUP_TAINTS
from tests.kustomize import DAEMONSET
from tests.unit.ami.examples import CALLS, FOLDER, GROUP, IMAGE, STOCK, printed

SCHEMA = Path(
    os.environ.get("FLOX_NODE_EKSCTL_SCHEMA") or Path(__file__).parents[4] / "shared/schemas/eksctl-schema.json"
)
SELECTOR = yaml.safe_load((DAEMONSET / "base/runtime-class.yaml").read_text())["scheduling"]["nodeSelector"]


@pytest.mark.parametrize("name", CALLS)
def test_the_examples_are_what_the_command_prints(name: str) -> None:
    again = "`python -m tests.unit.ami.examples` writes it anew"
    assert (FOLDER / name).read_text() == printed(*CALLS[name], *GROUP), again
    assert {path.name for path in FOLDER.iterdir()} == set(CALLS)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    if not SCHEMA.is_file():
        pytest.skip(f"did NOT run: eksctl's schema is not at {SCHEMA} (FLOX_NODE_EKSCTL_SCHEMA)")
    schema: dict[str, Any] = json.loads(SCHEMA.read_text())
    return schema


@pytest.mark.parametrize("how", [IMAGE, STOCK])
@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_a_node_group_is_valid_for_eksctl(schema: dict[str, Any], how: tuple[str, ...], arch: str) -> None:
    text = printed("nodegroup", *how, *GROUP, "--arch", arch, "--label", "team=ci")
    document = yaml.safe_load(text)
    jsonschema.validate(document, schema)
    (group,) = document["managedNodeGroups"]
    assert group["labels"] == {"flox.dev/enabled": "true", "team": "ci"}
    assert ("ami" in group) is not ("preBootstrapCommands" in group)
    misspelt = {**document, "managedNodeGroups": [{**group, "amiFamilly": "AmazonLinux2023"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, schema)


CRDS = Path(
    os.environ.get("FLOX_NODE_KARPENTER_CRDS")
    or Path.home() / "go/pkg/mod/github.com/aws/karpenter-provider-aws@v1.15.2/pkg/apis/crds"
)


def _closed(schema: Any) -> Any:
    """The schema with no property beside those that it names: the API server would drop it without a word."""
    if isinstance(schema, dict):
        closed = {key: _closed(value) for key, value in schema.items()}
        return {"additionalProperties": False, **closed} if "properties" in closed else closed
    return [_closed(each) for each in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("how", [IMAGE, STOCK])
@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_a_node_pool_is_valid_for_karpenter(how: tuple[str, ...], arch: str) -> None:
    if not CRDS.is_dir():
        module = "go mod download github.com/aws/karpenter-provider-aws@v1.15.2"
        pytest.skip(f"did NOT run: Karpenter's CRDs are not at {CRDS} (`{module}`, or FLOX_NODE_KARPENTER_CRDS)")
    files = {"NodePool": "karpenter.sh_nodepools.yaml", "EC2NodeClass": "karpenter.k8s.aws_ec2nodeclasses.yaml"}
    documents = {each["kind"]: each for each in yaml.safe_load_all(printed("karpenter", *how, *GROUP, "--arch", arch))}
    for kind, name in files.items():
        crd = yaml.safe_load((CRDS / name).read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        crd["properties"]["metadata"] = {"type": "object"}
        jsonschema.validate(documents[kind], _closed(crd))


@pytest.mark.parametrize("what", ["nodegroup", "karpenter", "terraform", "userdata"])
def test_the_bootstrap_in_a_file_is_the_script_with_its_settings(what: str, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(_script(what, printed(what, *STOCK, *GROUP)))
    for shell in ("bash", "dash"):
        if shutil.which(shell):
            assert subprocess.run([shell, "-n", script], capture_output=True, check=False).stderr == b""
    code = [line for line in script.read_text().splitlines() if not line.startswith("#") and line.strip()]
    original = [
        line
        for line in (FOLDER.parent / "bootstrap.sh").read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert code == [f"export FLOX_NODE_PAYLOAD='{STOCK[1]}'", f"export FLOX_NODE_SHA256='{STOCK[3]}'", *original]
    assert len(script.read_bytes()) < files.USER_DATA_LIMIT * 3 // 4, "what EKS or eksctl adds needs room, too"


def _script(what: str, text: str) -> str:
    """The shell in a file, as its reader would hand it to cloud-init."""
    if what == "nodegroup":
        (group,) = yaml.safe_load(text)["managedNodeGroups"]
        return str(group["preBootstrapCommands"][0])
    if what == "karpenter":
        text = next(each["spec"]["userData"] for each in yaml.safe_load_all(text) if each["kind"] == "EC2NodeClass")
    if what == "terraform":
        lines = text.partition("<<-EOT\n")[2].partition("\n    EOT")[0].splitlines()
        return "\n".join(line[6:] for line in lines).replace("$${", "${").replace("%%{", "%{") + "\n"
    message = email.message_from_string(text)
    assert len(list(message.walk())) == 2
    part = message.get_payload(0)
    assert isinstance(part, email.message.Message)
    assert part.get_content_type() == "text/x-shellscript"
    return str(part.get_payload())


@pytest.mark.parametrize("how", [IMAGE, STOCK])
def test_terraform_gets_what_the_module_needs(how: tuple[str, ...]) -> None:
    text = printed("terraform", *how, *GROUP)
    document = hcl2.loads(text)
    (module,) = document["module"]
    body = {key: value for key, value in next(iter(module.values())).items() if not key.startswith("__")}
    if how is IMAGE:
        assert body["enable_bootstrap_user_data"] is True
        for name in ("cluster_endpoint", "cluster_auth_base64", "cluster_service_cidr"):
            assert "data.aws_eks_cluster.this" in body[name]
        assert "cloudinit_pre_nodeadm" not in body
    else:
        assert "ami_id" not in body
        assert "cloudinit_pre_nodeadm" in body
    if shutil.which("terraform"):
        done = subprocess.run(
            ["terraform", "fmt", "-check", "-"], input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kubernetes", "plugin"), [("1.29", "io.containerd.grpc.v1.cri"), ("1.35", "io.containerd.cri.v1.runtime")]
)
def test_a_nodeconfig_has_the_id_that_its_containerd_reads_and_registers_no_taint(kubernetes: str, plugin: str) -> None:
    document = yaml.safe_load(printed("nodeconfig", *GROUP, "--kubernetes", kubernetes))
    assert set(document["spec"]) == {"containerd"}
    table = tomllib.loads(document["spec"]["containerd"]["config"])["plugins"][plugin]["containerd"]["runtimes"]["flox"]
    assert table["options"] == {"BinaryName": "/opt/flox-node/bin/flox-runtime", "SystemdCgroup": True}
    assert table["base_runtime_spec"] == "/etc/containerd/base-runtime-spec.json"


@pytest.mark.parametrize("what", ["nodegroup", "karpenter", "terraform", "userdata", "nodeconfig"])
def test_no_file_registers_a_taint_through_the_kubelet(what: str) -> None:
    text = printed(what, *STOCK, *GROUP)
    assert "register-with-taints" not in text.lower()
    assert "registerWithTaints" not in text


# An autoscaler makes a node for a pod that waits, if a node as the group declares it would take the pod. The
# RuntimeClass puts SELECTOR into every Flox pod, which has no toleration of its own.


def karpenter_would_scale(pool: Mapping[str, Any], selector: Mapping[str, str]) -> bool:
    """Karpenter's rule: each label that the pod selects is declared, and taints but startup taints are tolerated.

    https://karpenter.sh/docs/concepts/nodepools/#spectemplatespecstartuptaints
    """
    template = pool["spec"]["template"]
    return selector.items() <= template["metadata"]["labels"].items() and not template["spec"].get("taints")


def cluster_autoscaler_would_scale(group: Mapping[str, Any], selector: Mapping[str, str]) -> bool:
    """The Cluster Autoscaler's rule without flags: of the template's taints only those of its prefix go by themselves.

    https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md (startup taints)
    """
    prefix = "startup-taint.cluster-autoscaler.kubernetes.io/"
    return selector.items() <= group["labels"].items() and all(
        taint["key"].startswith(prefix) for taint in group["taints"]
    )


@pytest.mark.parametrize("how", [IMAGE, STOCK])
def test_an_autoscaler_makes_the_first_node_for_a_flox_pod_and_the_taint_is_one_that_goes(how: tuple[str, ...]) -> None:
    pool = next(d for d in yaml.safe_load_all(printed("karpenter", *how, *GROUP)) if d["kind"] == "NodePool")
    assert karpenter_would_scale(pool, SELECTOR)
    assert not karpenter_would_scale(pool, {"another": "label"})
    (group,) = yaml.safe_load(printed("nodegroup", *how, *GROUP))["managedNodeGroups"]
    assert cluster_autoscaler_would_scale(group, SELECTOR)
    theirs = {**group, "taints": [{"key": "flox.dev/not-ready", "effect": "NoSchedule"}]}
    assert not cluster_autoscaler_would_scale(theirs, SELECTOR)
    keys = {taint["key"] for taint in (*pool["spec"]["template"]["spec"]["startupTaints"], *group["taints"])}
    assert keys == set(STARTUP_TAINTS)


@pytest.mark.parametrize("what", ["nodegroup", "karpenter", "terraform"])
def test_a_group_whose_startup_taint_nothing_would_lift_is_no_file(what: str) -> None:
    with pytest.raises(UsageError, match="for ever"):
        printed(what, *IMAGE, *GROUP, "--kubernetes", f"1.{MINIMUM_MINOR - 1}")
    assert "daemonset/overlays/baked" in printed(what, *IMAGE, *GROUP, "--kubernetes", f"1.{MINIMUM_MINOR}")


def test_the_runtime_class_is_the_manifests_own() -> None:
    mine = next(d for d in yaml.safe_load_all(printed("karpenter", *IMAGE, *GROUP)) if d["kind"] == "RuntimeClass")
    assert mine == yaml.safe_load((DAEMONSET / "base/runtime-class.yaml").read_text())


@pytest.mark.parametrize(
    "nodes",
    [
        "auto-mode",
        "Auto Mode",
        "fargate",
        "Bottlerocket",
        "BottlerocketFips",
        "AmazonLinux2",
        "WindowsServer2022CoreContainer",
        "Ubuntu2404",
    ],
)
def test_nodes_that_cannot_be_flox_nodes_are_refused_with_the_way_out(nodes: str) -> None:
    with pytest.raises(RefusedError) as caught:
        printed("nodegroup", *IMAGE, *GROUP, "--nodes", nodes)
    assert caught.value.remedy != RefusedError.default_remedy


@pytest.mark.parametrize(
    "wrong",
    [
        ("--cluster", "demo\nkind: Secret"),
        ("--region", "eu"),
        ("--ami", "ami-123"),
        ("--arch", "riscv"),
        ("--arch", "arm64", "--instance-type", "m7i.large"),
        ("--instance-type", "m7g.large"),
        ("--kubernetes", "1.27"),
        ("--label", "team"),
        ("--label", 'team="x"'),
        ("--nodes", "mainframe"),
        ("--ami", "", "--payload", "https://x/'; rm -rf /", "--sha256", "0" * 64),
        ("--ami", "", "--payload", "https://x/$(id)", "--sha256", "0" * 64),
        ("--ami", "", "--payload", "https://x/p"),
        ("--ami", ""),
        ("--payload", STOCK[1], "--sha256", STOCK[3]),
    ],
)
def test_what_cannot_be_meant_is_no_file(wrong: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        printed("nodegroup", *GROUP, *IMAGE, *wrong)


@pytest.mark.parametrize("what", [("userdata", *STOCK), ("nodeconfig",)], ids=lambda what: what[0])
def test_labels_are_no_part_of_user_data(what: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="declare no labels"):
        printed(*what, *GROUP, "--label", "team=ci")
