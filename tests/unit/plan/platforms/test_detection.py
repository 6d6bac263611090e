"""Which platform a node is, and which containerd its kubelet uses, from trees of files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flox_node.containerd.live import daemon
from flox_node.errors import RefusedError, UsageError
from flox_node.plan.detect import recognise
from flox_node.platforms import all_platforms
from tests.unit.plan.platforms.trees import Node, Process, containerd, kubelet

K3S_SOCKET = "/run/k3s/containerd/containerd.sock"
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'


def rancher(name: str, unit: str) -> Process:
    return containerd(
        unit,
        f"/var/lib/rancher/{name}/data/0a1b/bin/containerd",
        K3S_SOCKET,
        f"/var/lib/rancher/{name}/agent/etc/containerd/config.toml",
    )


K3S = rancher("k3s", "k3s.service")
K3S_ITSELF = Process(("/usr/local/bin/k3s server",), "k3s.service", exe="/var/lib/rancher/k3s/data/0a1b/bin/k3s")
K3S_AGENT = (
    rancher("k3s", "k3s-agent.service"),
    Process(("/usr/local/bin/k3s", "agent"), "k3s-agent.service"),
)
KIND = ("/kind/product_name/", "/kind/manifests/", "/etc/containerd/cri-base.json/")
STANDARD = (containerd(), kubelet())

NODES: dict[str, tuple[str, Node]] = {
    "plain Debian": ("plain", Node(STANDARD)),
    "plain with a folder that a former k3s left": ("plain", Node(STANDARD, ("/var/lib/rancher/k3s/agent/",))),
    "EKS AL2023": (
        "eks-al2023",
        Node(STANDARD, ("/usr/bin/nodeadm", "/etc/eks/nodeadm.d/"), 'ID="amzn"\nVERSION_ID="2023"\n'),
    ),
    "EKS AL2": (
        "eks-al2",
        Node(STANDARD, ("/etc/eks/bootstrap.sh", "/etc/eks/containerd/"), 'ID="amzn"\nVERSION_ID="2"\n'),
    ),
    "k3s server": ("k3s", Node((K3S_ITSELF, K3S))),
    "k3s agent": ("k3s", Node(K3S_AGENT)),
    "k3s beside Docker's containerd": ("k3s", Node((containerd(), K3S_ITSELF, K3S))),
    "k3s in kind": ("k3s", Node((K3S_ITSELF, K3S), KIND)),
    "k3s that uses a containerd of the node": (
        "plain",
        Node(
            (
                containerd(),
                dataclasses.replace(
                    K3S_ITSELF,
                    argv=("k3s", "server", f"--container-runtime-endpoint=unix://{'/run/containerd/containerd.sock'}"),
                ),
            )
        ),
    ),
    "RKE2 server": (
        "rke2",
        Node((rancher("rke2", "rke2-server.service"), kubelet(f"--container-runtime-endpoint=unix://{K3S_SOCKET}"))),
    ),
    "RKE2 agent": (
        "rke2",
        Node((rancher("rke2", "rke2-agent.service"), kubelet(f"--container-runtime-endpoint=unix://{K3S_SOCKET}"))),
    ),
    "k0s worker": (
        "k0s",
        Node(
            (
                containerd(
                    "k0sworker.service",
                    "/var/lib/k0s/bin/containerd",
                    "/run/k0s/containerd.sock",
                    "/etc/k0s/containerd.toml",
                ),
                kubelet("--container-runtime-endpoint=unix:///run/k0s/containerd.sock"),
            )
        ),
    ),
    "MicroK8s": (
        "microk8s",
        Node(
            (
                containerd(
                    "snap.microk8s.daemon-containerd.service",
                    "/snap/microk8s/7234/bin/containerd",
                    "/var/snap/microk8s/common/run/containerd.sock",
                    "/var/snap/microk8s/7234/args/containerd.toml",
                ),
                Process(
                    ("/snap/microk8s/7234/kubelite", "--kubelet-args-file=/var/snap/microk8s/7234/args/kubelet"),
                    "snap.microk8s.daemon-kubelite.service",
                ),
            ),
            texts={
                "/var/snap/microk8s/7234/args/kubelet": "--v=2\n"
                "--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n"
            },
        ),
    ),
    "kind": ("kind", Node(STANDARD, KIND)),
    "minikube on kind's image": ("minikube", Node(STANDARD, (*KIND, "/kic.txt", "/var/lib/minikube/"))),
    "minikube in a machine": ("minikube", Node(STANDARD, ("/var/lib/minikube/",), "ID=buildroot\n")),
    "AKS Ubuntu": ("aks", Node(STANDARD, ("/etc/kubernetes/azure.json",), UBUNTU)),
    "AKS Azure Linux": ("aks", Node(STANDARD, ("/etc/kubernetes/azure.json",), "ID=azurelinux\n")),
    "GKE Ubuntu": ("gke-ubuntu", Node(STANDARD, ("/home/kubernetes/kube-env",), UBUNTU)),
    "Flatcar": (
        "flatcar",
        Node(
            (containerd(config="/usr/share/containerd/config.toml"), kubelet()),
            ("/usr/share/containerd/config.toml",),
            "ID=flatcar\nID_LIKE=coreos\n",
        ),
    ),
    "k3s on Flatcar": (
        "k3s",
        Node((K3S_ITSELF, K3S), ("/usr/share/containerd/config.toml", "/usr/share/flatcar/"), "ID=flatcar\n"),
    ),
    "GKE COS": ("gke-cos", Node(STANDARD, ("/home/kubernetes/kube-env",), "ID=cos\n")),
    "Bottlerocket": ("bottlerocket", Node(STANDARD, (), "ID=bottlerocket\n")),
    "Talos": ("talos", Node(STANDARD, (), "ID=talos\n")),
    "CRI-O": (
        "openshift",
        Node(
            (
                Process(("/usr/bin/crio",), "crio.service", listens="/run/crio/crio.sock"),
                kubelet("--container-runtime-endpoint=/var/run/crio/crio.sock"),
            )
        ),
    ),
    "CRI-O that the kubelet does not use": (
        "plain",
        Node((*STANDARD, Process(("/usr/bin/crio",), "crio.service", listens="/run/crio/crio.sock"))),
    ),
    "composefs": ("composefs", Node(STANDARD, root_source="composefs")),
    "NixOS": ("nixos", Node(STANDARD, ("/etc/NIXOS",), "ID=nixos\n")),
    "AKS OS Guard": (
        "aks-osguard",
        Node(STANDARD, ("/etc/kubernetes/azure.json",), "ID=azurelinux\nVARIANT_ID=osguard\n"),
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_what_its_signs_say(name: str, tmp_path: Path) -> None:
    expected, node = NODES[name]
    assert recognise(node.at(tmp_path)).platform.name == expected


def test_every_platform_has_a_node_here() -> None:
    assert {platform.name for platform in all_platforms()} == {expected for expected, _ in NODES.values()}


CONTRADICTIONS = {
    "a unit of k3s, all else plain": (
        Node((containerd("k3s.service"), kubelet())),
        ("unit k3s.service", "k3s"),
    ),
    "RKE2's program in a unit of k3s": (
        Node((rancher("rke2", "k3s.service"), kubelet(f"--container-runtime-endpoint={K3S_SOCKET}"))),
        ("unit k3s.service", "program */rke2/data/*/bin/*"),
    ),
    "a kind image with EKS' files": (
        Node(STANDARD, ("/usr/bin/nodeadm", "/etc/eks/nodeadm.d/", "/etc/kubernetes/azure.json"), UBUNTU),
        ("eks-al2023", "aks"),
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_names_both_signs_and_an_override_settles_it(name: str, tmp_path: Path) -> None:
    node, named = CONTRADICTIONS[name]
    host = node.at(tmp_path)
    with pytest.raises(RefusedError, match="contradict each other") as caught:
        recognise(host)
    assert all(text in caught.value.cause for text in named), caught.value.cause
    assert "--platform" in caught.value.remedy
    assert recognise(host, named="plain").platform.name == "plain"


def test_a_platform_that_does_not_exist_is_a_usage_error_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        recognise(Node(STANDARD).at(tmp_path), named="k9s")
    assert "k3s" in caught.value.remedy


@pytest.mark.parametrize("platform", [p for p in all_platforms() if p.refusal], ids=lambda p: p.name)
def test_a_refusal_says_why_and_what_instead(platform: object) -> None:
    refusal = platform.refusal  # type: ignore[attr-defined]
    assert len(refusal.reason) > 30
    assert len(refusal.instead) > 30


KUBELETS = {
    "a flag": (kubelet("--container-runtime-endpoint=unix:///run/k3s/containerd/containerd.sock"), {}, K3S_SOCKET),
    "a flag in two words": (kubelet("--container-runtime-endpoint", "/run/other.sock"), {}, "/run/other.sock"),
    "nothing": (kubelet(), {}, "/run/containerd/containerd.sock"),
    "kubeadm's YAML": (
        kubelet("--config=/var/lib/kubelet/config.yaml"),
        {"/var/lib/kubelet/config.yaml": "kind: X\ncontainerRuntimeEndpoint: unix:///run/a.sock # why\n"},
        "/run/a.sock",
    ),
    "kubeadm's YAML, empty": (
        kubelet("--config=/var/lib/kubelet/config.yaml"),
        {"/var/lib/kubelet/config.yaml": 'containerRuntimeEndpoint: ""\n'},
        "/run/containerd/containerd.sock",
    ),
    "EKS' JSON with a drop-in": (
        kubelet(
            "--config", "/etc/kubernetes/kubelet/config.json", "--config-dir", "/etc/kubernetes/kubelet/config.json.d"
        ),
        {
            "/etc/kubernetes/kubelet/config.json": '{"containerRuntimeEndpoint": "unix:///run/a.sock"}',
            "/etc/kubernetes/kubelet/config.json.d/40-nodeadm.conf": '{"containerRuntimeEndpoint": "unix:///run/b.sock"}',
        },
        "/run/b.sock",
    ),
    "a flag beside a file": (
        kubelet("--config=/c.yaml", "--container-runtime-endpoint=unix:///var/run/flag.sock"),
        {"/c.yaml": "containerRuntimeEndpoint: unix:///run/file.sock\n"},
        "/run/flag.sock",
    ),
    "k3s' own configuration": (
        K3S_ITSELF,
        {"/etc/rancher/k3s/config.yaml": "container-runtime-endpoint: /run/containerd/containerd.sock\n"},
        "/run/containerd/containerd.sock",
    ),
}


@pytest.mark.parametrize("name", KUBELETS)
def test_the_kubelet_says_which_socket(name: str, tmp_path: Path) -> None:
    process, texts, expected = KUBELETS[name]
    assert daemon.cri_socket(Node((process,), texts=texts).at(tmp_path)) == expected


def test_the_containerd_of_the_kubelet_is_told_from_the_others(tmp_path: Path) -> None:
    docker = containerd("docker-containerd.service", config="/etc/docker/containerd.toml")
    host = Node((docker, K3S_ITSELF, K3S)).at(tmp_path)
    found = daemon.find(host, daemon.cri_socket(host), patience_s=0)
    assert found.unit == "k3s.service"
    assert found.exe == "/var/lib/rancher/k3s/data/0a1b/bin/containerd"
    assert found.config_path == "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"


def test_a_node_in_a_container_of_this_node_is_not_this_node(tmp_path: Path) -> None:
    inner = dataclasses.replace(containerd("inner.service"), pid_namespace=2)
    inner_kubelet = dataclasses.replace(kubelet("--container-runtime-endpoint=unix:///run/inner.sock"), pid_namespace=2)
    host = Node((inner, inner_kubelet, containerd(), kubelet())).at(tmp_path)
    assert daemon.cri_socket(host) == "/run/containerd/containerd.sock"
    assert daemon.find(host, "/run/containerd/containerd.sock", patience_s=0).unit == "containerd.service"


def test_without_a_kubelet_the_only_containerd_is_taken_and_several_are_refused(tmp_path: Path) -> None:
    one = Node((K3S,)).at(tmp_path / "one")
    assert daemon.cri_socket(one) == K3S_SOCKET
    two = Node((containerd(), K3S)).at(tmp_path / "two")
    with pytest.raises(RefusedError, match="several containerds"):
        daemon.cri_socket(two)
    assert daemon.cri_socket(two, "/run/containerd/containerd.sock") == "/run/containerd/containerd.sock"


def test_kubelets_of_different_sockets_are_refused(tmp_path: Path) -> None:
    host = Node((kubelet(), kubelet("--container-runtime-endpoint=/run/b.sock"))).at(tmp_path)
    with pytest.raises(RefusedError, match="Several kubelets"):
        daemon.cri_socket(host)
