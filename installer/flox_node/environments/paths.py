"""Where the environments' files lie on the node. Every path of ours is here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flox_node.names import BIN, CURRENT

_ENVIRONMENT_ROOTS = "/nix/var/nix/gcroots/flox-node"
_VIEWS = "/nix/var/flox-node/views"
_KUBELET = "/var/lib/kubelet"
_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Flatcar
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Red Hat, Amazon Linux
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


@dataclass(frozen=True)
class Paths:
    """The node's files below `root`: "" on the node itself, a folder in tests."""

    root: str = ""

    def on_disk(self, path: str) -> str:
        """Where a path of the node is reached. Links between the node's files always hold the node's own path."""
        return self.root + path

    @property
    def views(self) -> str:
        """Where releases before kept what a container sees as /nix: folders of hard links into the store."""
        return self.on_disk(_VIEWS)

    @property
    def gc_roots(self) -> str:
        """Our folder of Nix' garbage collector roots."""
        return self.on_disk(_ENVIRONMENT_ROOTS)

    @property
    def auto_roots(self) -> str:
        """Nix' own folder of links to roots that lie elsewhere."""
        return self.on_disk("/nix/var/nix/gcroots/auto")

    @property
    def index(self) -> str:
        """The folder of the index."""
        return self.on_disk("/var/lib/flox-node/envs/index")

    @property
    def pods(self) -> str:
        """The folder of the shim's records of sandboxes."""
        return self.on_disk("/run/flox-node/pods")

    @property
    def grants(self) -> str:
        """The folder of what the hub granted to whom."""
        return self.on_disk("/var/lib/flox-node/envs/grants")

    @property
    def grant_key(self) -> str:
        """The node's key of the grants' names."""
        return self.on_disk("/var/lib/flox-node/envs/grant.key")

    @property
    def log(self) -> str:
        """The node's log of the handler."""
        return self.on_disk("/var/log/flox-node/runtime.jsonl")

    @property
    def fetches(self) -> str:
        """The folder of the fetches' states."""
        return self.on_disk("/run/flox-node/fetches")

    @property
    def notices(self) -> str:
        """The folder of what is to be told to pods."""
        return self.on_disk("/run/flox-node/notices")

    @property
    def realise_tool(self) -> str:
        """Our own program, as the shim and the units start it; a path of the node."""
        return f"{BIN}/flox-node-realise"

    @property
    def locks(self) -> str:
        """The folder of the locks."""
        return self.on_disk("/run/flox-node/locks")

    @property
    def work(self) -> str:
        """The private folder of running realisations: a tmpfs, for the Flox CLI may write a token into it."""
        return self.on_disk("/run/flox-node/realise")

    @property
    def flox(self) -> str:
        """The Flox CLI."""
        return self.on_disk(f"{BIN}/flox")

    @property
    def payload_manifest(self) -> str:
        """The manifest of the payload in force; it names the other programs."""
        return self.on_disk(f"{CURRENT}/manifest.json")

    @property
    def policy(self) -> str:
        """The administrator's policy."""
        return self.on_disk("/etc/flox-node/policy.json")

    def pod_volumes(self, uid: str, kubelet_root: str | None = None) -> tuple[str, ...]:
        """Where the kubelet keeps a pod's volumes: below the root that the policy names, else below every usual one."""
        usual = self._pod_volumes(_KUBELET, uid)
        if kubelet_root:
            return (self._pod_volumes(kubelet_root, uid),)
        if os.path.isdir(usual):
            return (usual,)  # one pod has one kubelet, and loading all platforms takes longer than the rest of this

        from flox_node.platforms import facts

        return tuple(self._pod_volumes(kubelet, uid) for kubelet in facts(lambda platform: [platform.kubelet_root]))

    def _pod_volumes(self, kubelet: str, uid: str) -> str:
        return self.on_disk(f"{kubelet}/pods/{uid}/volumes")

    @property
    def ca_files(self) -> tuple[str, ...]:
        """Where distributions keep the certificate authorities that the node trusts."""
        return tuple(self.on_disk(path) for path in _CA_FILES)
