"""The files: an eksctl node group, a NodeConfig, user data, a NodePool of Karpenter, a Terraform module.

In every one of them the group declares the label that the RuntimeClass selects, so that an autoscaler makes nodes for
Flox pods out of nothing, and a startup taint that keeps these pods away until the handler is live. None registers a
taint through nodeadm: there it would replace those of Karpenter and eksctl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flox_node.containerd.config import schema
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.registration.nodeadm import fragment
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.eks.group import Group, require_lifted, require_no_labels, require_payload
from flox_node.names import ENABLED, NOT_READY, SHIM

LABEL = (ENABLED, "true")
KARPENTERS_TAINT = NOT_READY
CLUSTER_AUTOSCALERS_TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/flox"
USER_DATA_LIMIT = 16 << 10  # bytes; of EC2, for all parts together
_BOOTSTRAP = Path(__file__).with_name("bootstrap.sh")
_VOLUME_GIB = 40
_AFTER = """\
# Then, once for the cluster: the RuntimeClass, and the reporter that lifts the startup taint:
#   kubectl apply -k daemonset/overlays/baked
"""


def nodegroup(group: Group) -> str:
    """A managed node group for `eksctl create nodegroup -f`."""
    require_payload(group)
    require_lifted(group)
    image = [f"    ami: {group.ami}"] if group.is_baked else []
    bootstrap = ["    preBootstrapCommands: # before nodeadm starts containerd and the kubelet", "      - |"]
    lines = [
        f"# {_purpose(group)}",
        f"#   eksctl create nodegroup --config-file {group.name}.yaml",
        *_AFTER.splitlines(),
        "apiVersion: eksctl.io/v1alpha5",
        "kind: ClusterConfig",
        "metadata:",
        f"  name: {group.cluster}",
        f"  region: {group.region}",
        f'  version: "{group.kubernetes}"',
        "managedNodeGroups:",
        f"  - name: {group.name}",
        *image,
        "    amiFamily: AmazonLinux2023",
        f"    instanceType: {group.instance_type}",
        "    minSize: 0",
        "    desiredCapacity: 1",
        "    maxSize: 10",
        f"    volumeSize: {_VOLUME_GIB} # EKS' 20, the payload, and room for environments",
        "    volumeType: gp3",
        "    volumeEncrypted: true",
        "    privateNetworking: true",
        "    labels: # with the label declared here, an autoscaler makes nodes for Flox pods",
        *(f'      {name}: "{value}"' for name, value in _labels(group)),
        "    taints: # and with a taint of that name it knows that the taint goes",
        f"      - key: {CLUSTER_AUTOSCALERS_TAINT}",
        "        effect: NoSchedule",
        "    propagateASGTags: true # labels and taints as tags, for the Cluster Autoscaler",
        *([] if group.is_baked else [*bootstrap, *_script(group, 8)]),
    ]
    return _text(lines)


def nodeconfig(group: Group) -> str:
    """The handler as a NodeConfig, for user data of your own; images and bootstraps hold it as a fragment already."""
    require_no_labels(group)
    text = fragment(Handler(binary_name=SHIM), ContainerdVersion.parse(group.containerd)).decode()
    return _text(
        [
            f"# For nodes of Kubernetes {group.kubernetes} (containerd {group.containerd}), the handler in user data:",
            "# a part of the type application/node.eks.aws. An image of ami/ and its bootstrap hold the same as",
            "# /etc/eks/nodeadm.d/50-flox-node.yaml. It registers no taint: that would replace those of the group.",
            *(
                []
                if group.containerd < "2"
                else [
                    f"# Where other parts say something under {schema.CRI_GRPC}, use that id below, too: nodeadm would",
                    "# take theirs for the old schema and ours for the new one, and containerd would not read theirs.",
                ]
            ),
            *text.splitlines()[1:],
        ]
    )


def userdata(group: Group) -> str:
    """The user data of a launch template for the stock image: EKS adds its own part with the cluster's data."""
    require_payload(group)
    require_no_labels(group)
    return _text([*_mime(group)])


def karpenter(group: Group) -> str:
    """A NodePool and its EC2NodeClass."""
    require_payload(group)
    require_lifted(group)
    image = f"    - id: {group.ami}" if group.is_baked else "    - alias: al2023@latest # name a release for production"
    user_data = [] if group.is_baked else ["  userData: |", *(f"    {line}".rstrip() for line in _mime(group))]
    lines = [
        f"# {_purpose(group)}",
        f"#   kubectl apply -f {group.name}.yaml",
        *_AFTER.splitlines(),
        "apiVersion: karpenter.sh/v1",
        "kind: NodePool",
        "metadata:",
        f"  name: {group.name}",
        "spec:",
        "  template:",
        "    metadata:",
        "      labels: # Karpenter makes nodes only for labels that a NodePool declares",
        *(f'        {name}: "{value}"' for name, value in _labels(group)),
        "    spec:",
        "      nodeClassRef:",
        "        group: karpenter.k8s.aws",
        "        kind: EC2NodeClass",
        f"        name: {group.name}",
        "      startupTaints: # pods need not tolerate it: the reporter lifts it once the handler is live",
        f"        - key: {KARPENTERS_TAINT}",
        "          effect: NoSchedule",
        "      requirements:",
        "        - key: kubernetes.io/os",
        "          operator: In",
        '          values: ["linux"]',
        "        - key: kubernetes.io/arch",
        "          operator: In",
        f'          values: ["{_go(group.arch)}"]',
        "        - key: node.kubernetes.io/instance-type",
        "          operator: In",
        f'          values: ["{group.instance_type}"]',
        "  disruption:",
        "    consolidationPolicy: WhenEmptyOrUnderutilized",
        "    consolidateAfter: 5m # environments are fetched again on a new node",
        "---",
        "apiVersion: karpenter.k8s.aws/v1",
        "kind: EC2NodeClass",
        "metadata:",
        f"  name: {group.name}",
        "spec:",
        "  amiFamily: AL2023",
        "  amiSelectorTerms:",
        image,
        f"  role: KarpenterNodeRole-{group.cluster}",
        "  subnetSelectorTerms:",
        f"    - tags: {{karpenter.sh/discovery: {group.cluster}}}",
        "  securityGroupSelectorTerms:",
        f"    - tags: {{karpenter.sh/discovery: {group.cluster}}}",
        "  metadataOptions:",
        "    httpTokens: required",
        "  blockDeviceMappings:",
        "    - deviceName: /dev/xvda",
        "      ebs:",
        f"        volumeSize: {_VOLUME_GIB}Gi",
        "        volumeType: gp3",
        "        encrypted: true",
        *user_data,
        "---",
        "apiVersion: node.k8s.io/v1",
        "kind: RuntimeClass",
        "metadata:",
        "  name: flox",
        "handler: flox",
        "scheduling:",
        "  nodeSelector:",
        f'    {LABEL[0]}: "{LABEL[1]}"',
    ]
    return _text(lines)


def terraform(group: Group) -> str:
    """A node group by terraform-aws-modules/eks, version 21."""
    require_payload(group)
    require_lifted(group)
    image = [
        f'  ami_id   = "{group.ami}"',
        "  # With an image of one's own nobody else tells nodeadm about the cluster: no node would join.",
        "  enable_bootstrap_user_data = true",
        "  cluster_endpoint           = data.aws_eks_cluster.this.endpoint",
        "  cluster_auth_base64        = data.aws_eks_cluster.this.certificate_authority[0].data",
    ]
    bootstrap = [
        "  cloudinit_pre_nodeadm = [{",
        '    content_type = "text/x-shellscript"',
        "    content      = <<-EOT",
        # HCL would take ${...} and %{...} of the shell for its own.
        *(line.replace("${", "$${").replace("%{", "%%{") for line in ["      #!/bin/sh", *_script(group, 6)]),
        "    EOT",
        "  }]",
    ]
    lines = [
        f"# {_purpose(group)}",
        *_AFTER.splitlines(),
        'variable "subnet_ids" {',
        "  type = list(string)",
        "}",
        "",
        'data "aws_eks_cluster" "this" {',
        f'  name   = "{group.cluster}"',
        f'  region = "{group.region}"',
        "}",
        "",
        'module "flox_nodes" {',
        '  source  = "terraform-aws-modules/eks/aws//modules/eks-managed-node-group"',
        '  version = "~> 21.19"',
        "",
        f'  name                 = "{group.name}"',
        "  cluster_name         = data.aws_eks_cluster.this.name",
        f'  kubernetes_version   = "{group.kubernetes}"',
        "  cluster_service_cidr = data.aws_eks_cluster.this.kubernetes_network_config[0].service_ipv4_cidr",
        "  subnet_ids           = var.subnet_ids",
        "",
        f'  ami_type = "AL2023_{_aws(group.arch)}_STANDARD"',
        *(image if group.is_baked else bootstrap),
        "",
        f'  instance_types = ["{group.instance_type}"]',
        "  min_size       = 0",
        "  desired_size   = 1",
        "  max_size       = 10",
        "",
        "  labels = {",
        *(f'    "{name}" = "{value}"' for name, value in _labels(group)),
        "  }",
        "  taints = {",
        "    flox = {",
        f'      key    = "{CLUSTER_AUTOSCALERS_TAINT}"',
        '      effect = "NO_SCHEDULE"',
        "    }",
        "  }",
        "",
        "  block_device_mappings = {",
        "    xvda = {",
        '      device_name = "/dev/xvda"',
        "      ebs = {",
        f"        volume_size = {_VOLUME_GIB}",
        '        volume_type = "gp3"',
        "        encrypted   = true",
        "      }",
        "    }",
        "  }",
        "}",
    ]
    return _text(lines)


def _purpose(group: Group) -> str:
    how = "their image has all" if group.is_baked else "the stock image, made so at the first boot"
    return f"Flox nodes on EKS (AL2023): {how}."


def _labels(group: Group) -> list[tuple[str, str]]:
    return [LABEL, *((name, value) for name, value in group.labels.items() if name != LABEL[0])]


def _script(group: Group, indent: int) -> list[str]:
    """The bootstrap with its settings, without its comments: EC2 takes 16 KiB of user data."""
    lines = _BOOTSTRAP.read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    given = [f"export FLOX_NODE_PAYLOAD='{group.payload}'", f"export FLOX_NODE_SHA256='{group.sha256}'"]
    return [f"{' ' * indent}{line}" for line in [*given, *code]]


def _mime(group: Group) -> Iterator[str]:
    if group.is_baked:
        yield "# Nodes of this image need no user data of ours: EKS, eksctl and Karpenter write the NodeConfig."
        return
    yield from (
        "MIME-Version: 1.0",
        'Content-Type: multipart/mixed; boundary="//"',
        "",
        "--//",
        'Content-Type: text/x-shellscript; charset="us-ascii"',
        "",
        "#!/bin/sh",
        *_script(group, 0),
        "",
        "--//--",
    )


def _go(arch: str) -> str:
    return "amd64" if arch == "x86_64" else arch


def _aws(arch: str) -> str:
    return "x86_64" if arch == "x86_64" else "ARM_64"


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
