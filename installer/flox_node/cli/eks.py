"""`flox-node eks`: files for groups of Flox nodes on EKS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from flox_node.cli.output import Result, application, command

app = application("Print files for groups of Flox nodes on EKS: eksctl, NodeConfig, user data, Karpenter, Terraform.")

Cluster = Annotated[str, typer.Option("--cluster", help="The cluster's name.", show_default=False)]
Region = Annotated[str, typer.Option("--region", help="The cluster's region.", show_default=False)]
Name = Annotated[str, typer.Option("--name", help="The group's name.")]
Ami = Annotated[str, typer.Option("--ami", help="An image of ami/.", show_default="the stock image, with --payload")]
Payload = Annotated[
    str, typer.Option("--payload", help="What the stock image fetches: https://... or oci://...@sha256:...")
]
Sha256 = Annotated[str, typer.Option("--sha256", help="The payload's digest; needed for a URL.")]
Arch = Annotated[str, typer.Option("--arch", help="x86_64 or arm64.")]
InstanceType = Annotated[
    str, typer.Option("--instance-type", help="Of all nodes.", show_default="m7i.large or m7g.large")
]
Kubernetes = Annotated[str, typer.Option("--kubernetes", help="The cluster's minor.")]
Label = Annotated[list[str] | None, typer.Option("--label", help="A further label NAME=VALUE; may be repeated.")]
Nodes = Annotated[
    str, typer.Option("--nodes", help="What they are: al2023. Auto Mode, Fargate and Bottlerocket are refused.")
]
_WHAT = {
    "nodegroup": "Print a managed node group for `eksctl create nodegroup --config-file`.",
    "nodeconfig": "Print the handler as a NodeConfig, for user data of your own.",
    "userdata": "Print the user data that makes nodes of the stock image Flox nodes.",
    "karpenter": "Print a NodePool and an EC2NodeClass of Karpenter.",
    "terraform": "Print a node group by the Terraform module terraform-aws-modules/eks.",
}


def _printer(what: str) -> Callable[..., Result]:
    def print_file(
        cluster: Cluster,
        region: Region,
        name: Name = "flox",
        ami: Ami = "",
        payload: Payload = "",
        sha256: Sha256 = "",
        arch: Arch = "x86_64",
        instance_type: InstanceType = "",
        kubernetes: Kubernetes = "1.35",
        label: Label = None,
        nodes: Nodes = "al2023",
    ) -> Result:
        from flox_node.eks import files
        from flox_node.eks.group import Group, require_supported
        from flox_node.errors import UsageError

        require_supported(nodes)
        malformed = [each for each in label or () if "=" not in each]
        if malformed:
            raise UsageError(f"--label {malformed[0]}: a label is NAME=VALUE.")
        labels = dict(each.split("=", 1) for each in label or ())
        digest = sha256.lower().removeprefix("sha256:")
        group = Group(cluster, region, name, ami, arch, instance_type, kubernetes, payload, digest, labels)
        text: str = getattr(files, what)(group)
        return Result({"file": text}, text.encode())

    print_file.__name__ = what
    print_file.__doc__ = _WHAT[what]
    return print_file


for _what in _WHAT:
    command(app, example=f"flox-node eks {_what} --cluster demo --region eu-central-1 --ami ami-0123456789abcdef0")(
        _printer(_what)
    )
