"""A node of a cluster: a node box with a real kubelet, kube-proxy and a bridge CNI."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Self

from tests.bed.box import NodeBox
from tests.bed.config import node_config
from tests.cluster import binaries, network
from tests.cluster.control_plane import ControlPlane

UNITS = Path(__file__).with_name("units")


class Node(NodeBox):
    """One node, off until `boot`; what holds of a `NodeBox` holds of it. It joins the cluster by itself once it is on.

    Its files are where kubeadm and the distributions have them: /etc/kubernetes, /var/lib/kubelet, /etc/cni/net.d.
    """

    def __init__(self, index: int, control_plane: ControlPlane, containerd: str, *kubelet_arguments: str) -> None:
        """index: which of the cluster's nodes, counted from 1. containerd: the release ("1.7", "2.1")."""
        super().__init__(containerd, config=node_config(systemd_cgroup=True))
        self.name = f"worker-{index}"
        self.address = network.address(index)
        self._pods = network.pods_of(index)
        layers = [binaries.layer(control_plane.release, program) for program in binaries.ON_NODES]
        self.layers = ":".join([*map(str, layers), str(binaries.node_tools()), self.layers])
        (self.folder / "kubelet").mkdir()
        self.write("etc/hostname", f"{self.name}\n")
        self.write("etc/resolv.conf", f"nameserver {network.API_SERVER}\n")  # nobody answers: there is no outside
        self._write_units()
        self._write_configuration(control_plane)
        arguments = [f"--hostname-override={self.name}", f"--node-ip={self.address}", *kubelet_arguments]
        self.write("etc/kubernetes/kubelet.env", f"KUBELET_ARGS={shlex.join(arguments)}\n")

    @property
    def network_namespace(self) -> Path:
        """Its network namespace as a file."""
        return self._scope.network_namespace

    def boot(self, timeout: float = 30) -> Self:
        """As of a node box. The namespace outlives a power cut, the interfaces that the pods had in it do not."""
        bridge = ["ip", "-n", self.network_namespace.name, "link", "delete", "cni0"]
        subprocess.run(bridge, capture_output=True, check=False)
        return super().boot(timeout)

    start = boot

    def _power_on(self, *program: str) -> "subprocess.Popen[bytes]":
        # The kubelet's folder is on a real file system, as containerd's: it measures the space of both.
        kubelet = f"--bind={self.folder / 'kubelet'}:/var/lib/kubelet"
        return super()._power_on(f"--hostname={self.name}", kubelet, *program)

    def _write_units(self) -> None:
        wanted = self.folder / "disk/etc/systemd/system/multi-user.target.wants"
        wanted.mkdir(parents=True)
        for unit in UNITS.glob("*.service"):
            self.write(f"etc/systemd/system/{unit.name}", unit.read_text())
            (wanted / unit.name).symlink_to(f"/etc/systemd/system/{unit.name}")
        self.write("etc/kubernetes/node-kernel.sh", (UNITS / "node-kernel.sh").read_text())

    def _write_configuration(self, control_plane: ControlPlane) -> None:
        self.write("etc/kubernetes/pki/ca.crt", (control_plane.pki / "ca.crt").read_text())
        identity = control_plane.kubeconfig_for(f"system:node:{self.name}", "system:nodes")
        self.write("etc/kubernetes/kubelet.conf", identity)
        self.write("etc/kubernetes/kube-proxy.conf", control_plane.kubeconfig_for("system:kube-proxy"))
        self._write_json("etc/kubernetes/kubelet.json", self._kubelet())
        self._write_json("etc/kubernetes/kube-proxy.json", self._kube_proxy())
        self._write_json("etc/cni/net.d/10-bridge.conflist", self._cni())

    def _write_json(self, path: str, value: object) -> None:
        self.write(path, json.dumps(value, indent=1) + "\n")

    def _kubelet(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "systemd",
            "failCgroupV1": False,  # from 1.35 on a kubelet refuses the cgroups of this machine unless it is told
            "clusterDomain": "cluster.local",
            "clusterDNS": [network.DNS_SERVICE],
            # The disk is the whole machine's, and nothing can be pulled again.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "failSwapOn": False,
            "syncFrequency": "10s",  # how soon a changed ConfigMap is seen; a minute by default
            # The machine under the node may neither lower an oom_score_adj nor raise a limit (CAP_SYS_RESOURCE).
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
        }

    def _kube_proxy(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
            "hostnameOverride": self.name,
            "mode": "iptables",
            "clusterCIDR": network.PODS,
            "conntrack": {"maxPerCore": 0, "min": 0},  # the table is the machine's
            "oomScoreAdj": 0,
        }

    def _cni(self) -> dict[str, object]:
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": self._pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": "bridge", "plugins": [bridge, portmap]}
