"""The programs of a cluster: one Kubernetes release built from its Go modules, etcd and a node's tools from Debian.

Each is an artefact of the bed's cache and a layer: a folder with `usr/bin/<program>` to lay over a node's root.
"""

import functools
import os
import re
import time
from pathlib import Path

from tests.bed import cache, debian, golang, images

DEFAULT = "1.34"  # runs with containerd 1.7 and 2.x, and on version 1 cgroups
ON_NODES = ("kubelet", "kube-proxy")
PROGRAMS = ("kubectl", "kubeadm", "kube-scheduler", "kube-controller-manager", "kube-apiserver", *ON_NODES)
COREDNS = golang.TOOLS / "coredns"
COREDNS_IMAGE = "flox.test/coredns:v1.12.4"
NODE_PACKAGES = ["conntrack", "containernetworking-plugins", "iptables"]


def release() -> str:
    """The Kubernetes minor release that `KUBERNETES` asks for, by default "1.34"."""
    return os.environ.get("KUBERNETES") or DEFAULT


def version(release: str) -> str:
    """The pinned patch release of a minor one, e.g. "v1.34.4"."""
    pin = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (_module(release) / "go.mod").read_text(), re.MULTILINE)
    if pin is None:
        raise RuntimeError(f"{_module(release)}/go.mod requires no k8s.io/kubernetes")
    return pin[1]


def missing(release: str) -> list[str]:
    """The programs of a release that would have to be built."""
    programs = [program for program in PROGRAMS if not cache.exists(_name(release, program), _recipe(release))]
    return programs if cache.exists("coredns", _coredns_recipe()) else [*programs, "coredns"]


def build(release: str) -> None:
    """Have everything of a release ready, with progress shown: a quarter of an hour on two cores the first time."""
    started, had_to_build = time.monotonic(), missing(release)
    for program in PROGRAMS:
        layer(release, program)
    coredns()
    etcd()
    node_tools()
    if had_to_build:
        cache.say(f"Kubernetes {version(release)}: {len(had_to_build)} programs in {time.monotonic() - started:.0f} s")


def layer(release: str, program: str) -> Path:
    """The layer with one program of a Kubernetes release, built if need be."""
    return cache.artefact(_name(release, program), _recipe(release), functools.partial(_build, release, program))


def path(release: str, program: str) -> Path:
    """One program of a Kubernetes release as a file of this machine, where it runs too."""
    return layer(release, program) / "usr/bin" / program


def coredns() -> Path:
    """The archive of the image `COREDNS_IMAGE`."""
    return cache.artefact("coredns", _coredns_recipe(), _build_coredns) / "coredns.tar"


def etcd() -> Path:
    """etcd 3.5 of trixie, which runs on this machine too."""
    recipe = {"suite": "trixie", "revision": 1}
    return cache.artefact("etcd-3.5", recipe, _unpack_etcd) / "usr/bin/etcd"


def node_tools() -> Path:
    """The layer with what kubelet, kube-proxy and containerd call on a node: iptables, conntrack, the CNI plugins."""
    recipe = {"suite": "bookworm", "packages": NODE_PACKAGES, "revision": 1}
    return cache.artefact("node-tools", recipe, _unpack_node_tools)


def _name(release: str, program: str) -> str:
    return f"kubernetes-{release}-{program}"


def _recipe(release: str) -> dict[str, object]:
    return {"module": golang.sources(_module(release)), "revision": 1}


def _module(release: str) -> Path:
    module = golang.TOOLS / f"kubernetes-{release}"
    if not module.is_dir():
        pinned = sorted(path.name.partition("-")[2] for path in golang.TOOLS.glob("kubernetes-*"))
        raise ValueError(f"Kubernetes {release!r} is none of {pinned}; pin it: python -m tests.cluster pin RELEASE")
    return module


def _build(release: str, program: str, folder: Path) -> None:
    into = folder / "usr/bin"
    into.mkdir(parents=True)
    # What the API server offers and how old a kubelet may be follows from the version, which the linker puts in.
    variables = {"gitVersion": version(release), "gitMajor": "1", "gitMinor": release.partition(".")[2]}
    stamps = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in variables.items())
    golang.build(_module(release), f"k8s.io/kubernetes/cmd/{program}", into=into, ldflags=stamps)


def _coredns_recipe() -> dict[str, object]:
    return {"module": golang.sources(COREDNS), "image": COREDNS_IMAGE, "revision": 1}


def _build_coredns(folder: Path) -> None:
    golang.build(COREDNS, ".", into=folder)
    program = folder / "coredns"
    files: dict[str, images.Entry] = {"coredns": (program.read_bytes(), 0o755)}
    config = {"Entrypoint": ["/coredns"]}
    images.write_archive(folder / "coredns.tar", COREDNS_IMAGE, [images.layer(files)], config)
    program.unlink()


def _unpack_etcd(folder: Path) -> None:
    debian.unpack("trixie", ["etcd-server"], folder, closure=False)


def _unpack_node_tools(folder: Path) -> None:
    debian.unpack("bookworm", NODE_PACKAGES, folder)
    # What maintainer scripts would do: choose iptables' variant.
    for name in ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"):
        (folder / "usr/sbin" / name).unlink(missing_ok=True)
        (folder / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    (folder / "opt/cni").mkdir(parents=True)
    (folder / "opt/cni/bin").symlink_to("/usr/lib/cni")  # where containerd looks by default
