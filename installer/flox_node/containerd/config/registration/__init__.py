"""How a handler comes into a containerd's configuration for good: which files of the node say so, on which platform.

A registration is data plus two pure functions. Where the configuration is rendered anew at a start or a boot (k3s,
EKS), the files that count are the platform's own extension points, and the rendered file is only what they lead to.
"""

from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.registration.base import NextStart, Registration, from_json, to_json
from flox_node.containerd.config.registration.copied import Copied
from flox_node.containerd.config.registration.imported import Imported
from flox_node.containerd.config.registration.k0s import K0s
from flox_node.containerd.config.registration.nodeadm import NodeConfig
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.registration.rancher import Rancher
from flox_node.containerd.config.registration.relocated import Relocated
from flox_node.containerd.config.registration.template import Template

__all__ = [
    "Copied",
    "Edit",
    "Imported",
    "K0s",
    "NextStart",
    "NodeConfig",
    "Plain",
    "Rancher",
    "Registration",
    "Relocated",
    "SourceEdit",
    "Template",
    "from_json",
    "to_json",
]
