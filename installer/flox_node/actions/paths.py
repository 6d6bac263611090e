"""The stable names of our programs on a node: what containerd's configuration and people may rely on."""

PREFIX = "/opt/flox-node"
CURRENT = f"{PREFIX}/current"
BIN = f"{PREFIX}/bin"
SHIM = f"{BIN}/flox-runtime"
