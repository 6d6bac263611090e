"""flox-node turns Kubernetes nodes into nodes that run pods from Flox environments."""

__version__ = "0.1.0"
