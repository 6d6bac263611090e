"""A stand-alone containerd with the shim as its handler `flox`, and a node's files as far as the shim reads them.

There is no installation: the Python side is a script that always gives the same answer, and the environment
`demo/hello` is made of files. Nix and the Flox CLI are there only after `with_cli`.
"""

from __future__ import annotations

import json
import shutil
from typing import Self

from tests.bed import cli, releases
from tests.bed.config import CRI_PLUGINS, node_config
from tests.bed.containerd import Containerd
from tests.bed.cri import Sandbox
from tests.bed.environment import RESOLUTION, ROOT, go_build, make_store, script

RUNC, RUNC_1_3, CRUN = "/usr/sbin/runc", "/opt/runc-1.3", f"{releases.CRUN}/crun"
POLICY = "/etc/flox-node/policy.json"
_SHIM = "/opt/flox-node/bin/flox-runtime"


# A network of a pod's own, in which there is nothing: the CRI wants an address, and a user namespace wants the network.
_CNI = {"cniVersion": "1.0.0", "name": "standin", "plugins": [{"type": "standin"}]}
_CNI_PLUGIN = """#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}' ;;
ADD)
  interface=$(printf '{"name": "%s", "sandbox": "%s"}' "$CNI_IFNAME" "$CNI_NETNS")
  echo '{"cniVersion": "1.0.0", "interfaces": ['"$interface"'], "ips": [{"address": "192.0.2.2/24", "interface": 0}]}'
  ;;
esac
"""


class FloxDaemon(Containerd):
    """A daemon with the handlers runc, runc-1.3, crun and flox; what runs behind flox is `inner_runtime`."""

    def __init__(self, release: str, inner: str = RUNC) -> None:
        """release: as of Containerd. inner: what runs behind flox at first; only one that is named has runc 1.3."""
        super().__init__(release, config=_config())
        self._cli: cli.Cli | None = None
        disk = self.folder / "disk"
        scratch = self.folder / "made"
        scratch.mkdir()
        make_store(disk / "nix", scratch)
        (disk / _SHIM.lstrip("/")).parent.mkdir(parents=True)
        go_build(ROOT / "shim", disk / _SHIM.lstrip("/"))
        shutil.copytree(releases.crun(), disk / releases.CRUN.lstrip("/"))
        (disk / "var/log/flox-node").mkdir(parents=True)
        if inner == RUNC_1_3:
            shutil.copy(releases.runc_1_3(), disk / RUNC_1_3.lstrip("/"))
        self.write("/etc/cni/net.d/10-standin.conflist", json.dumps(_CNI))
        for plugin in ("standin", "loopback"):
            for folder in ("opt/cni/bin", "usr/lib/cni"):  # upstream's and Debian's
                script(disk / folder / plugin, _CNI_PLUGIN)
        self.inner_runtime(inner)
        self.resolve()

    def with_cli(self) -> Self:
        """Put the payload's Nix and the Flox CLI on the node, which is off; its database will know all of its store."""
        self._cli = cli.add(self.folder / "disk")
        (self.folder / "disk/opt/flox-node/current/bin/nix-store").symlink_to(self._cli.nix_store)
        return self

    def start(self, timeout: float = 60) -> Self:
        super().start(timeout)
        if self._cli:
            self.run([self._cli.nix_store, "--load-db"], input="".join(self._cli.registered.values()))
        return self

    def inner_runtime(self, program: str) -> None:
        """What new containers run under."""
        self.write(POLICY, json.dumps({"schema_version": 1, "inner_runtime": program}))

    def resolve(self, **changes: object) -> None:
        """What the Python side answers from now on."""
        answer = {"schema_version": 1, "ok": True, "resolution": {**RESOLUTION, **changes}}
        folder = self.root if self._pid else self.folder / "disk"
        script(
            folder / "opt/flox-node/bin/flox-node-realise",
            f"#!/bin/sh\ncat >/dev/null\ncat <<'END'\n{json.dumps(answer)}\nEND\n",
        )

    def pod(self, handler: str = "flox", *, host_users: bool = True, **annotations: str) -> Sandbox:
        """A sandbox; annotations are flox.dev/ ones."""
        named = {"environment": "demo/hello", **annotations} if handler == "flox" else annotations
        return self.cri.run_sandbox(
            handler,
            annotations={f"flox.dev/{name.replace('_', '-')}": value for name, value in named.items()},
            host_users=host_users,
        )

    def state(self) -> dict[str, int]:
        """Every file of ours that pods leave, by its path on the node, with its size."""
        folders = ("run/flox-node", "nix/var/nix/gcroots", "run/containerd/io.containerd.runtime.v2.task")
        found: dict[str, int] = {}
        for folder in folders:
            for path in (self.root / folder).rglob("*"):
                if path.is_relative_to(self.root / folder) and "rootfs" not in path.parts and not path.is_dir():
                    found[str(path.relative_to(self.root))] = path.lstat().st_size
        return found


# crun sets what the CRI else sets in a pod's network through the node's /proc/sys, which the machine shows read-only.
_SETTINGS = """  enable_cdi = true
  cdi_spec_dirs = ["/etc/cdi"]
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
"""


def _config() -> str:
    plugin = CRI_PLUGINS[2]
    text = node_config().replace(f'[plugins."{plugin}"]\n', f'[plugins."{plugin}"]\n{_SETTINGS}')
    for name, program in (("runc-1.3", RUNC_1_3), ("crun", CRUN), ("flox", _SHIM)):
        text += f"""
    [plugins."{plugin}".containerd.runtimes."{name}"]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["flox.dev/*"]
      container_annotations = ["flox.dev/*"]

      [plugins."{plugin}".containerd.runtimes."{name}".options]
        BinaryName = "{program}"
"""
    return text
