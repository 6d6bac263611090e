"""The control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one scope of this machine.

Keys, certificates and kubeconfigs are kubeadm's, and the programs' arguments are those of kubeadm's static pods.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.bed.processes import PATIENCE_S
from tests.bed.scope import Scope
from tests.cluster import binaries, network

ENTER = 'network=$1; shift; exec nsenter --net="$network" "$@"'


class ControlPlane:
    """The processes of one control plane, made by `start` and gone after `close`."""

    def __init__(self, release: str) -> None:
        """release: the Kubernetes minor release, e.g. "1.34"."""
        self.release = release
        self.scope = Scope("cluster")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("etcd", "logs", "home"):
            (self.scope.folder / name).mkdir()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; it works in the control plane's network namespace."""
        return self.scope.folder / "super-admin.conf"

    @property
    def pki(self) -> Path:
        """The folder of the cluster's certificates and keys, named as kubeadm does."""
        return self.scope.folder / "pki"

    def start(self, timeout: float = 60) -> None:
        """Make the certificates, start the programs and wait until the API server is ready."""
        self._write_kubeadm_config()
        self._write_audit_policy()
        self._kubeadm("init", "phase", "certs", "all")
        self._kubeadm("init", "phase", "kubeconfig", "all", f"--kubeconfig-dir={self.scope.folder}")
        for program in ("etcd", "kube-apiserver"):
            self.run(program)
        self.wait_ready(timeout)
        # `kubectl exec` and its like: the API server calls the kubelet, and the kubelet asks whether it may.
        user, role = "kube-apiserver-kubelet-client", "system:kubelet-api-admin"
        binding = ("create", "clusterrolebinding", role, f"--user={user}", f"--clusterrole={role}")
        subprocess.run(self.kubectl(*binding), check=True, capture_output=True)
        for program in ("kube-controller-manager", "kube-scheduler"):
            self.run(program)

    def run(self, program: str) -> None:
        """Start a program of the control plane, e.g. "kube-apiserver"."""
        arguments = {
            "etcd": self._etcd,
            "kube-apiserver": self._api_server,
            "kube-controller-manager": self._controller_manager,
            "kube-scheduler": self._scheduler,
        }[program]()
        file = binaries.etcd() if program == "etcd" else binaries.path(self.release, program)
        log = self.scope.folder / "logs" / program
        self._processes[program] = self.scope.popen(ENTER, self.scope.network_namespace, file, *arguments, log=log)

    def pid(self, program: str) -> int:
        """The process of a program of the control plane."""
        return self._processes[program].pid

    def kill(self, program: str) -> None:
        """Kill a program of the control plane; `run` starts it again."""
        process = self._processes.pop(program)
        process.kill()
        process.wait()

    def wait_ready(self, timeout: float = PATIENCE_S) -> None:
        """Wait until the API server is ready."""
        deadline = time.monotonic() + timeout
        while True:
            self.check_alive()
            done = subprocess.run(self.kubectl("get", "--raw=/readyz"), capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"The API server is not ready after {timeout} s: {done.stderr}\n{self.logs()}")
            time.sleep(0.2)

    def requests(self, user: str) -> list[dict[str, Any]]:
        """What a user has asked of the API server so far, as audit events; only service accounts are written down."""
        lines = (self.scope.folder / "audit.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in events if event["user"]["username"] == user]

    def add_dns(self) -> None:
        """Apply kubeadm's CoreDNS, whose image the nodes must have."""
        self._kubeadm("init", "phase", "addon", "coredns", f"--kubeconfig={self.kubeconfig}")

    def kubeconfig_for(self, user: str, *groups: str) -> str:
        """The text of a kubeconfig with a client certificate for `user`."""
        return self._kubeadm("kubeconfig", "user", f"--client-name={user}", *(f"--org={group}" for group in groups))

    def command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """The argv of a program of the release ("kubectl", "kubeadm") in the control plane's network."""
        enter = ["nsenter", f"--net={self.scope.network_namespace}", "env", f"HOME={self.scope.folder / 'home'}"]
        return [*enter, binaries.path(self.release, program), *arguments]

    def kubectl(self, *arguments: str | Path) -> list[str | Path]:
        """The argv of an administrator's kubectl."""
        return self.command("kubectl", f"--kubeconfig={self.kubeconfig}", *arguments)

    def logs(self) -> str:
        """The end of what each program wrote."""
        files = sorted((self.scope.folder / "logs").iterdir())
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def check_alive(self) -> None:
        """RuntimeError with the log of a program that has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.scope.folder / "logs" / name).read_text(errors="replace")
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{log[-4000:]}")

    def close(self) -> None:
        """Kill and remove everything."""
        self.scope.kill()
        for process in self._processes.values():
            process.wait()
        self.scope.close()

    def _kubeadm(self, *arguments: str) -> str:
        command = self.command("kubeadm", *arguments, f"--config={self.scope.folder / 'kubeadm.json'}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"kubeadm {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _write_kubeadm_config(self) -> None:
        dns, _, tag = binaries.COREDNS_IMAGE.partition("/coredns:")
        cluster = {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "clusterName": "flox-bed",
            "kubernetesVersion": binaries.version(self.release),
            "certificatesDir": str(self.pki),
            "controlPlaneEndpoint": f"{network.API_SERVER}:6443",
            "encryptionAlgorithm": "ECDSA-P256",
            "dns": {"imageRepository": dns, "imageTag": tag},
            "networking": {"podSubnet": network.PODS, "serviceSubnet": network.SERVICES},
        }
        init = {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": network.API_SERVER, "bindPort": 6443},
            "nodeRegistration": {"name": "control-plane", "criSocket": "unix:///run/containerd/containerd.sock"},
        }
        text = "\n---\n".join(json.dumps(document) for document in (cluster, init))
        (self.scope.folder / "kubeadm.json").write_text(text)

    def _write_audit_policy(self) -> None:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            # A watch is told when it begins, everything else when it is answered.
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
                {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            ],
        }
        (self.scope.folder / "audit.json").write_text(json.dumps(policy))

    def _etcd(self) -> list[str]:
        pki = self.pki / "etcd"
        return [
            f"--data-dir={self.scope.folder / 'etcd'}",
            "--unsafe-no-fsync",  # nobody needs this cluster after a power cut of the machine
            "--listen-client-urls=https://127.0.0.1:2379",
            "--advertise-client-urls=https://127.0.0.1:2379",
            "--listen-peer-urls=https://127.0.0.1:2380",
            "--initial-advertise-peer-urls=https://127.0.0.1:2380",
            "--initial-cluster=default=https://127.0.0.1:2380",
            "--client-cert-auth=true",
            f"--trusted-ca-file={pki / 'ca.crt'}",
            f"--cert-file={pki / 'server.crt'}",
            f"--key-file={pki / 'server.key'}",
            "--peer-client-cert-auth=true",
            f"--peer-trusted-ca-file={pki / 'ca.crt'}",
            f"--peer-cert-file={pki / 'peer.crt'}",
            f"--peer-key-file={pki / 'peer.key'}",
        ]

    def _api_server(self) -> list[str]:
        pki = self.pki
        return [
            f"--advertise-address={network.API_SERVER}",
            "--secure-port=6443",
            "--allow-privileged=true",
            f"--audit-policy-file={self.scope.folder / 'audit.json'}",
            f"--audit-log-path={self.scope.folder / 'audit.jsonl'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            "--etcd-servers=https://127.0.0.1:2379",
            f"--etcd-cafile={pki / 'etcd/ca.crt'}",
            f"--etcd-certfile={pki / 'apiserver-etcd-client.crt'}",
            f"--etcd-keyfile={pki / 'apiserver-etcd-client.key'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={network.SERVICES}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
            f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
            "--enable-aggregator-routing=true",  # no kube-proxy here: webhooks are called at their pods' addresses
        ]

    def _controller_manager(self) -> list[str]:
        kubeconfig = self.scope.folder / "controller-manager.conf"
        pki = self.pki
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={network.SERVICES}",
            f"--cluster-cidr={network.PODS}",
        ]

    def _scheduler(self) -> list[str]:
        kubeconfig = self.scope.folder / "scheduler.conf"
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ]
