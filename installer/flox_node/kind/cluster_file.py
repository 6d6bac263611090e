"""The cluster file for `kind create cluster --config`, and the patches for those who register the handler by kind.

kind's documents: https://kind.sigs.k8s.io/docs/user/configuration/.
"""

from __future__ import annotations

from dataclasses import dataclass

from flox_node.containerd.config import schema
from flox_node.containerd.config.block import tables_text
from flox_node.containerd.config.editor import Handler, table_for
from flox_node.names import ENABLED

MARK = "flox.dev/made-by"
"""The label of the nodes of a cluster that this command made; one without it is never touched."""
OURS = "flox-node-kind"
NODE_PORT = 30080
"""Where the demo's service is on every node."""
_SKIPS_OTHER_VERSIONS = (0, 32)  # from this kind on a patch with `version = N` counts only for a file of that version
# Where a node's containerd looks for how registries are reached; what is put there later counts without a restart. The
# nodes of every kind have a configuration of version 2; in another one this would mean nothing and hurt nothing.
_REGISTRIES = f"""\
[plugins."{schema.CRI_GRPC}".registry]
  config_path = "/etc/containerd/certs.d"
"""
_KIND_NODE = {"base_runtime_spec": "/etc/containerd/cri-base.json", "options": {"SystemdCgroup": True}}


@dataclass(frozen=True)
class Shape:
    """A cluster as it is asked for.

    port: of this machine, where the demo answers; kubernetes: "1.36.1", "" for the maker's own default.
    """

    name: str = "flox"
    nodes: int = 1
    port: int = 8080
    kubernetes: str = ""

    @property
    def node_image(self) -> str:
        """kind's image of the Kubernetes release; "" for the one that this kind was released with."""
        return f"kindest/node:v{self.kubernetes.removeprefix('v')}" if self.kubernetes else ""


@dataclass(frozen=True)
class Baked:
    """Where a payload lies on this machine, for a node that gets the handler from kind and /nix by a mount.

    One node: a store has one database, and a database one machine that writes it.
    """

    nix: str
    prefix: str
    kind_version: tuple[int, int]


def cluster_file(shape: Shape, baked: Baked | None = None) -> str:
    """The YAML of a cluster: one control plane, which is also the only node where `nodes` is 1, and workers."""
    lines = ["kind: Cluster", "apiVersion: kind.x-k8s.io/v1alpha4", f"name: {shape.name}", "containerdConfigPatches:"]
    for patch in (_REGISTRIES, *(patches(baked.kind_version) if baked is not None else ())):
        lines += ["- |-", *(f"  {line}" if line else "" for line in patch.rstrip("\n").split("\n"))]
    lines.append("nodes:")
    for index in range(shape.nodes):
        lines.append(f"- role: {'worker' if index else 'control-plane'}")
        labels = {MARK: OURS} | ({ENABLED: "true"} if baked is not None else {})
        lines += ["  labels:", *(f'    {key}: "{value}"' for key, value in labels.items())]
        if index == 0:
            lines += [
                "  extraPortMappings:",
                f"  - {{containerPort: {NODE_PORT}, hostPort: {shape.port}, listenAddress: 127.0.0.1}}",
            ]
        if baked is not None:
            lines += [
                "  extraMounts:",
                f'  - {{hostPath: "{baked.nix}", containerPath: /nix}}',
                f'  - {{hostPath: "{baked.prefix}", containerPath: /opt/flox-node, readOnly: true}}',
            ]
    return "\n".join(lines) + "\n"


def patches(kind_version: tuple[int, int]) -> list[str]:
    """`containerdConfigPatches` that register the handler on the nodes of a kind release, whatever their schema.

    Up to 0.31 every patch is merged into the file, which has version 2; from 0.32 on only those of its own version.
    """
    if kind_version < _SKIPS_OTHER_VERSIONS:
        return [_patch(schema.CRI_GRPC)]
    plugins = {2: schema.CRI_GRPC, 3: schema.CRI_RUNTIME}
    return [f"version = {version}\n{_patch(plugin)}" for version, plugin in plugins.items()]


def _patch(plugin: str) -> str:
    path = ("plugins", plugin, "containerd", "runtimes", Handler().name)
    return tables_text({path: table_for(Handler(), _KIND_NODE)}, "\n")
