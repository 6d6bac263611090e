"""The names that all of the code, and what others wrote, relies on. They are API: none is ever changed."""

import re

HANDLER = "flox"
"""The CRI runtime handler; the RuntimeClass has the same name."""
ENABLED = "flox.dev/enabled"
"""The node's label, "true" from the first live handler until the uninstall; the RuntimeClass selects it."""
NOT_READY = "flox.dev/not-ready"
"""The startup taint's key. A node group sets it (NoSchedule), the reporter lifts it."""
PREFIX = "/opt/flox-node"
"""Where payloads and the stable names of our programs lie on a node."""
CURRENT = f"{PREFIX}/current"
BIN = f"{PREFIX}/bin"
SHIM = f"{BIN}/flox-runtime"
"""What containerd's configuration calls for a container of the handler."""
STORE_PATH = re.compile(r"/nix/store/([0-9a-df-np-sv-z]{32})-[0-9a-zA-Z+_?=-][0-9a-zA-Z+._?=-]{0,210}")
"""A path of a Nix store; the group is its hash. Nix' own rule, but for names that begin with a dot."""
