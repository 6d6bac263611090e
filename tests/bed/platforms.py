"""Node boxes dressed as platforms: their files, unit names and processes, and who rewrites the configuration when.

What renders configurations (nodeadm, k3s, RKE2, k0s) is a double that merges with the same libraries; MicroK8s' and
EKS AL2's own are a few lines of shell, as the originals are; kind's files, containerd, systemd and runc are real.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bed import cache, golang, kind, releases, rootfs
from tests.bed.box import NodeBox
from tests.bed.config import CRI_PLUGINS, SANDBOX_IMAGE
from tests.bed.machine import CONFIG, SOCKET, Machine

NEIGHBOURS = ("alone", "nvidia", "kata")
_DOUBLE = golang.TOOLS / "platforms"
_V2, _V3 = CRI_PLUGINS[2], CRI_PLUGINS[3]
_IMAGES = "io.containerd.cri.v1.images"
_Tables = tuple[dict[str, str], dict[str, str]]
_NVIDIA: _Tables = {"runtime_type": "io.containerd.runc.v2"}, {"BinaryName": "/usr/bin/nvidia-container-runtime"}
_NODEADM_SOURCES = ("--config-source imds://user-data", "--config-source file:///etc/eks/nodeadm.d/")
_NODEADM_CACHE = "--config-cache /run/eks/nodeadm/config.json"
_KATA: _Tables = {"runtime_type": "io.containerd.kata-qemu.v2"}, {}


@dataclass(frozen=True)
class Outfit:
    """What makes a node box a platform. Paths are the node's; texts end up on its disk before its first boot."""

    files: Mapping[str, str]
    os_release: str = "ID=debian\nVERSION_ID=12\n"
    programs: Mapping[str, str] = field(default_factory=dict)  # a path: "double", "containerd", "kubelet" or "script"
    links: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)  # enabled at boot
    masked: tuple[str, ...] = ()
    layer: Callable[[], Path] | None = None  # a folder that is laid over the node's root
    socket: str = SOCKET
    unit: str = "containerd.service"
    config: str = f"/{CONFIG}"  # what containerd is started with, before us
    durable: str = f"/{CONFIG}"  # the file that must register the handler for good
    cgroup_parent: str = ""  # of pods: a slice, where containerd uses systemd's cgroups
    forgets: bool = False  # a boot undoes an install: it is installed again
    rewritten_at_boot: bool = False  # and an uninstall leaves the rendered file to the next boot


class PlatformBox(NodeBox):
    """A node box that is a platform to whoever looks at it."""

    def __init__(self, platform: str, release: str, neighbour: str = "alone") -> None:
        """platform: a key of OUTFITS. neighbour: what else is registered: "alone" (nothing), "nvidia", "kata"."""
        super().__init__(release, config="")
        self.outfit = dress(self, platform, neighbour)


def dress(box: Machine, platform: str, neighbour: str = "alone") -> Outfit:
    """Make a box that is off look like a node of a platform, whatever else it is."""
    outfit = OUTFITS[platform](box.containerd, neighbour)
    if outfit.layer is not None:
        box.layers = f"{outfit.layer()}:{box.layers}"
    disk = box.folder / "disk"
    (disk / CONFIG).unlink()
    box.socket = outfit.socket
    for path, text in {**outfit.files, "/etc/os-release": outfit.os_release}.items():
        if path.endswith("/"):
            (disk / path.strip("/")).mkdir(parents=True, exist_ok=True)
        else:
            box.write(path, text)
    for path, what in outfit.programs.items():
        _put_program(disk / path.lstrip("/"), what, box.containerd)
    for path, target in outfit.links.items():
        (disk / path.lstrip("/")).symlink_to(target)
    units = disk / "etc/systemd/system"
    wants = units / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for name, text in outfit.units.items():
        (units / name).write_text(text)
        (wants / name).symlink_to(f"../{name}")
    for name in outfit.masked:
        (units / name).symlink_to("/dev/null")
    return outfit


@functools.cache
def _double() -> Path:
    recipe: dict[str, object] = {"sources": golang.sources(_DOUBLE), "revision": 1}
    return cache.artefact("platforms", recipe, lambda into: golang.build(_DOUBLE, ".", into=into)) / "platforms"


def _put_program(path: Path, what: str, release: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "script":
        path.chmod(0o755)
        return
    sources = {"containerd": releases.program(release, "containerd"), "kubelet": rootfs.folder() / "usr/bin/kubelet"}
    try:
        os.link(sources.get(what) or _double(), path)
    except OSError:
        shutil.copy(sources.get(what) or _double(), path)


def _table(plugin: str, name: str, values: Mapping[str, str], options: Mapping[str, str]) -> str:
    lines = [f'[plugins."{plugin}".containerd.runtimes.{name}]', *(f'  {key} = "{values[key]}"' for key in values)]
    if options:
        lines.append(f'[plugins."{plugin}".containerd.runtimes.{name}.options]')
        lines += [f'  {key} = "{value}"' for key, value in options.items()]
    return "\n".join(lines) + "\n"


def _neighbours(plugin: str, neighbour: str) -> str:
    """The tables that a neighbour has somebody write."""
    tables = {"alone": "", "nvidia": _table(plugin, "nvidia", *_NVIDIA), "kata": _table(plugin, "kata-qemu", *_KATA)}
    return tables[neighbour]


def _cri(plugin: str, *, extra: str = "") -> str:
    """The CRI of a node: pause image, no lowered oom scores (the machine may not), runc with options of its own."""
    if plugin == _V3:
        sandbox = f'[plugins."{_IMAGES}".pinned_images]\n  sandbox = "{SANDBOX_IMAGE}"\n\n[plugins."{plugin}"]\n'
    else:
        sandbox = f'[plugins."{plugin}"]\n  sandbox_image = "{SANDBOX_IMAGE}"\n'
    return (
        f"{sandbox}  restrict_oom_score_adj = true\n{extra}"
        f'[plugins."{plugin}".containerd]\n  default_runtime_name = "runc"\n'
        f'[plugins."{plugin}".containerd.runtimes.runc]\n  runtime_type = "io.containerd.runc.v2"\n'
        f'[plugins."{plugin}".containerd.runtimes.runc.options]\n  BinaryName = "/usr/sbin/runc"\n'
    )


def _other_containerd() -> str:
    """The configuration of a second containerd on the node, which no kubelet uses.

    Without NRI: both would listen on its one socket, and when both start at once one of them fails with its CRI.
    """
    return f'version = 2\n\n{_cri(_V2)}\n[plugins."io.containerd.nri.v1.nri"]\n  disable = true\n'


def _service(command: str, *, before: str = "", after: str = "", kind: str = "oneshot") -> str:
    order = f"{f'Before={before}' if before else ''}\n{f'After={after}' if after else ''}\n"
    kept = (
        "RemainAfterExit=yes"
        if kind == "oneshot"
        else "NotifyAccess=all\nKillMode=process\nDelegate=yes\nRestart=always"
    )
    return f"[Unit]\nDescription={command}\n{order}[Service]\nType={kind}\n{kept}\nExecStart={command}\n"


def _plain_files(release: str, neighbour: str, *, version: int = 2, plugin: str = _V2) -> dict[str, str]:
    """An administrator's configuration; NVIDIA's toolkit adds a drop-in with the whole CRI in it."""
    del release
    if neighbour == "nvidia":
        drop_in = f"version = {version}\n\n{_cri(plugin)}{_neighbours(plugin, neighbour)}"
        root = f'version = {version}\nimports = ["/etc/containerd/conf.d/*.toml"]\n\n{_cri(plugin)}'
        return {f"/{CONFIG}": root, "/etc/containerd/conf.d/99-nvidia.toml": drop_in}
    return {f"/{CONFIG}": f"# ours\nversion = {version}\n\n{_cri(plugin)}\n{_neighbours(plugin, neighbour)}"}


def _plain(release: str, neighbour: str) -> Outfit:
    version, plugin = (2, _V2) if release < "2" else (3, _V3)
    files = _plain_files(release, neighbour, version=version, plugin=plugin)
    return Outfit(files, durable=_beside_schema_3(release, neighbour))


def _beside_schema_3(release: str, neighbour: str) -> str:
    """Until 2.2 a file of ours beside such a root would hide the runtimes of one of schema 2 that comes later."""
    return "/etc/containerd/conf.d/50-flox-node.toml" if neighbour == "nvidia" and release >= "2.3" else f"/{CONFIG}"


def _aks(release: str, neighbour: str) -> Outfit:
    plugin = _V2 if release < "2" else _V3  # version = 2 all the same
    files = _plain_files(release, neighbour, plugin=plugin) | {"/etc/kubernetes/azure.json": "{}\n"}
    durable = _beside_schema_3(release, neighbour)
    return Outfit(files, os_release="ID=ubuntu\nVERSION_ID=24.04\n", durable=durable)


def _gke_ubuntu(release: str, neighbour: str) -> Outfit:
    files = _plain_files(release, neighbour)
    kept = {f"/home/kubernetes/containerd{path.removeprefix('/etc/containerd')}": files[path] for path in files}
    return Outfit(
        {**files, **kept, "/home/kubernetes/kube-env": "x\n"},
        os_release="ID=ubuntu\nVERSION_ID=24.04\n",
        units={
            "kube-node-configuration.service": _service(
                "/bin/cp -rT /home/kubernetes/containerd /etc/containerd", before="containerd.service"
            )
        },
        durable="/etc/containerd/conf.d/50-flox-node.toml"
        if neighbour == "nvidia" and release >= "2"
        else f"/{CONFIG}",
        forgets=not (neighbour == "nvidia" and release >= "2"),
    )


KIND_LITERALS = ('snapshotter = "overlayfs"', "restrict_oom_score_adj = ")


def _kind(release: str, neighbour: str) -> Outfit:
    """kind's own files; what an engine or kubeadm would do is in `kind.node_layer`."""
    text = _with_pause(kind.node_config(kind.RELEASES[-1])) + _neighbours(
        _V2, "kata" if neighbour == "kata" else "alone"
    )
    files = {f"/{CONFIG}": text, "/kind/manifests/": ""}
    if neighbour == "nvidia":
        drop_in = text.replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true")
        files["/etc/containerd/conf.d/99-nvidia.toml"] = drop_in + _neighbours(_V2, neighbour)
        files[f"/{CONFIG}"] = text.replace(
            "version = 2\n", 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
        )
    return Outfit(
        files,
        layer=kind.node_layer,
        programs={"/usr/local/bin/containerd": "containerd"},
        units={"kind-start.service": _service(kind.START, before="containerd.service")},
        durable="/etc/containerd/conf.d/50-flox-node.toml"
        if neighbour == "nvidia" and release >= "2"
        else f"/{CONFIG}",
        cgroup_parent="/kubelet.slice",
    )


def _with_pause(text: str) -> str:
    """A configuration with the sandbox image that the bed has."""
    changed, count = re.subn(r'(sandbox_image = )".*"', rf'\1"{SANDBOX_IMAGE}"', text)
    assert count == 1, "kind no longer names its sandbox image here"
    return changed


def _minikube(release: str, neighbour: str) -> Outfit:
    of_kind = _kind(release, neighbour)
    return dataclasses.replace(of_kind, files={**of_kind.files, "/kic.txt": "kic\n", "/var/lib/minikube/": ""})


def _eks_al2023(release: str, neighbour: str) -> Outfit:
    users = {
        "alone": "",
        "nvidia": _neighbours(_V2 if release < "2" else _V3, "nvidia"),
        "kata": _neighbours(_V2, "kata"),
    }
    fragment = "".join(f"      {line}\n" for line in users[neighbour].splitlines())
    templates = {plugin: _nodeadm_template(plugin) for plugin in (_V2, _V3)}
    head = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n"
    files = {
        f"/{CONFIG}": "",
        "/usr/share/nodeadm/config.template.toml": f"version = 2\n\n{templates[_V2]}",
        "/usr/share/nodeadm/config2.template.toml": f"version = 3\n\n{templates[_V3]}",
        "/usr/share/nodeadm/user-data.yaml": f"{head}  cluster:\n    name: demo\n",
        "/etc/eks/nodeadm.d/": "",
    }
    if fragment:
        files["/etc/eks/nodeadm.d/40-user.yaml"] = f"{head}  containerd:\n    config: |\n{fragment}"
    return Outfit(
        files,
        os_release='ID="amzn"\nVERSION_ID="2023"\n',
        programs={"/usr/bin/nodeadm": "double"},
        units={
            "nodeadm-config.service": _service(
                f"/usr/bin/nodeadm init --skip run {_NODEADM_SOURCES[0]} {_NODEADM_CACHE}", before="containerd.service"
            ),
            "nodeadm-run.service": _service(
                f"/bin/sh -c 'nodeadm init --skip config {' '.join(_NODEADM_SOURCES)} {_NODEADM_CACHE}"
                " && systemctl restart containerd kubelet'",
                after="nodeadm-config.service containerd.service kubelet.service",
            ),
        },
        durable="/etc/eks/nodeadm.d/50-flox-node.yaml",
        cgroup_parent="/kubepods.slice",
        rewritten_at_boot=True,
    )


def _nodeadm_template(plugin: str) -> str:
    """With all that nodeadm's own templates set.

    https://github.com/awslabs/amazon-eks-ami/tree/main/nodeadm/internal/containerd
    """
    runc = f'[plugins."{plugin}".containerd.runtimes.runc]\n'
    spec = '  base_runtime_spec = "/etc/containerd/base-runtime-spec.json"\n'
    cri = _cri(plugin, extra="  enable_cdi = true\n").replace(runc, runc + spec) + "  SystemdCgroup = true\n"
    images, discard = (_IMAGES, f'[plugins."{_IMAGES}"]\n') if plugin == _V3 else (plugin, "")
    kept = '  default_runtime_name = "runc"\n'
    discard += "  discard_unpacked_layers = true\n"
    return f"""\
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

{cri if plugin == _V3 else cri.replace(kept, kept + discard)}
{discard if plugin == _V3 else ""}
[plugins."{plugin}".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"

[plugins."{images}".registry]
  config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"
"""


def _eks_al2(release: str, neighbour: str) -> Outfit:
    version, plugin = (2, _V2) if release < "2" else (3, _V3)
    imports = 'imports = ["/etc/containerd/config.d/*.toml"]\n'
    text = f"version = {version}\n{imports}\n{_cri(plugin)}{_neighbours(plugin, neighbour)}"
    script = "cmp -s /etc/eks/containerd/containerd-config.toml /etc/containerd/config.toml || "
    script += "cp /etc/eks/containerd/containerd-config.toml /etc/containerd/config.toml\n"
    return Outfit(
        {
            f"/{CONFIG}": text,
            "/etc/eks/containerd/containerd-config.toml": text,
            "/etc/containerd/config.d/": "",
            "/etc/eks/bootstrap.sh": f"#!/bin/sh\n{script}",
        },
        os_release='ID="amzn"\nVERSION_ID="2"\n',
        programs={"/etc/eks/bootstrap.sh": "script"},
        units={"bootstrap.service": _service("/etc/eks/bootstrap.sh", before="containerd.service")},
        durable="/etc/eks/containerd/containerd-config.toml"
        if release < "2"
        else "/etc/containerd/config.d/50-flox-node.toml",
    )


def _rancher(name: str, unit: str, role: str, *, imports: bool = False) -> Callable[[str, str], Outfit]:
    def outfit(release: str, neighbour: str) -> Outfit:
        folder = f"/var/lib/rancher/{name}/agent/etc/containerd"
        drop_ins = f"{folder}/config-v3.toml.d"
        head = '# File generated by rancher. DO NOT EDIT.\nversion = {}\n{}root = "/var/lib/containerd/rancher"\n\n'
        runc = "  SystemdCgroup = {{ .SystemdCgroup }}\n"
        imported = f'imports = ["{drop_ins}/*.toml"]\n' if imports else ""
        own = "nvidia" if neighbour == "nvidia" else "alone"  # the base renders what it finds on the node
        files = {
            "/usr/share/rancher/base-v2.toml": head.format(2, "") + _cri(_V2) + runc + _neighbours(_V2, own),
            "/usr/share/rancher/base-v3.toml": head.format(3, imported) + _cri(_V3) + runc + _neighbours(_V3, own),
            f"{folder}/": "",
            "/etc/containerd/config.toml": _other_containerd(),
        }
        template = f"{folder}/config-v3.toml.tmpl" if release >= "2" else f"{folder}/config.toml.tmpl"
        if neighbour == "kata" and imports:
            files[f"{drop_ins}/kata-deploy.toml"] = _neighbours(_V3, "kata")
        elif neighbour == "kata":
            plugin = _V3 if release >= "2" else _V2
            files[template] = '{{ template "base" . }}\n\n' + _neighbours(plugin, "kata").rstrip("\n")
        command = f"/usr/local/bin/{name} {role}"
        return Outfit(
            files,
            programs={
                f"/usr/local/bin/{name}": "double",
                f"/var/lib/rancher/{name}/data/current/bin/containerd": "containerd",
            },
            units={unit: _service(command, kind="notify")},
            masked=("kubelet.service",),
            socket="run/k3s/containerd/containerd.sock",
            unit=unit,
            config=f"{folder}/config.toml",
            durable=f"{drop_ins}/50-flox-node.toml" if imports else template,
        )

    return outfit


def _k0s(release: str, neighbour: str) -> Outfit:
    plugin = _V2 if release < "2" else _V3
    root = 'root = "/var/lib/containerd/k0s"\n'
    files = {
        "/usr/share/k0s/containerd-1.toml": f'version = 2\nimports = ["/run/k0s/containerd-cri.toml"]\n{root}',
        "/usr/share/k0s/containerd-2.toml": 'version = 3\nimports = ["/etc/k0s/containerd.d/*.toml"]\n'
        f"{root}\n{_cri(_V3)}",
        "/usr/share/k0s/cri.toml": f"version = 2\n\n{_cri(_V2)}",
        "/etc/k0s/containerd.d/": "",
        "/etc/containerd/config.toml": _other_containerd(),
    }
    if neighbour != "alone":
        files[f"/etc/k0s/containerd.d/{neighbour}.toml"] = _neighbours(plugin, neighbour)
    return Outfit(
        files,
        programs={"/usr/local/bin/k0s": "double", "/var/lib/k0s/bin/containerd": "containerd"},
        units={"k0sworker.service": _service("/usr/local/bin/k0s worker", kind="notify")},
        masked=("kubelet.service",),
        socket="run/k0s/containerd.sock",
        unit="k0sworker.service",
        config="/etc/k0s/containerd.toml",
        durable="/etc/k0s/containerd.d/50-flox-node.toml",
    )


_MICROK8S_WRAPPER = """\
#!/bin/sh
# As the snap's run-containerd-with-args: fill the template in, then be containerd.
export SNAP_DATA=/var/snap/microk8s/7234
mkdir -p /var/snap/microk8s/common/run
sed -e 's,${SNAPSHOTTER},overlayfs,g' -e 's,${RUNTIME},runc,g' -e 's,${RUNTIME_TYPE},io.containerd.runc.v2,g' \\
    -e "s,\\${SNAP_DATA},$SNAP_DATA,g" $SNAP_DATA/args/containerd-template.toml >$SNAP_DATA/args/containerd.toml
exec /snap/microk8s/7234/bin/containerd --config $SNAP_DATA/args/containerd.toml \\
    --root /var/lib/containerd/microk8s --state /run/microk8s --address /var/snap/microk8s/common/run/containerd.sock
"""
_MICROK8S_TEMPLATE = f"""\
# Use config version 2 to enable new configuration fields.
version = 2
oom_score = 0

# The 'plugins."{_V2}"' table contains all of the server options.
[plugins."{_V2}"]

  sandbox_image = "{SANDBOX_IMAGE}"
  restrict_oom_score_adj = true

  [plugins."{_V2}".containerd]
    snapshotter = "${{SNAPSHOTTER}}"
    default_runtime_name = "${{RUNTIME}}"

    [plugins."{_V2}".containerd.runtimes.runc]
      runtime_type = "${{RUNTIME_TYPE}}"

  [plugins."{_V2}".registry]
    config_path = "${{SNAP_DATA}}/args/certs.d"
"""


def _microk8s(release: str, neighbour: str) -> Outfit:
    del release
    socket = "var/snap/microk8s/common/run/containerd.sock"
    template = "/var/snap/microk8s/7234/args/containerd-template.toml"
    return Outfit(
        {
            template: _MICROK8S_TEMPLATE + _neighbours(_V2, neighbour),
            "/snap/microk8s/7234/run-containerd": _MICROK8S_WRAPPER,
            "/var/snap/microk8s/7234/args/kubelet": "--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n",
            "/etc/containerd/config.toml": _other_containerd(),
        },
        os_release="ID=ubuntu\nVERSION_ID=24.04\n",
        programs={
            "/snap/microk8s/7234/run-containerd": "script",
            "/snap/microk8s/7234/bin/containerd": "containerd",
            "/snap/microk8s/7234/kubelite": "kubelet",
        },
        links={"/var/snap/microk8s/current": "7234"},
        units={
            "snap.microk8s.daemon-containerd.service": _service("/snap/microk8s/7234/run-containerd", kind="notify"),
            "snap.microk8s.daemon-kubelite.service": "[Unit]\nAfter=snap.microk8s.daemon-containerd.service\n"
            "[Service]\nRestart=always\nExecStart=/snap/microk8s/7234/kubelite "
            "--kubelet-args-file=/var/snap/microk8s/7234/args/kubelet "
            f"--container-runtime-endpoint=unix:///{socket}\n",
        },
        masked=("kubelet.service",),
        socket=socket,
        unit="snap.microk8s.daemon-containerd.service",
        config="/var/snap/microk8s/7234/args/containerd.toml",
        durable=template,
    )


def _flatcar(release: str, neighbour: str) -> Outfit:
    vendor = "/usr/share/containerd/config.toml"
    unit = (rootfs.UNITS / "containerd.service").read_text()
    unit = unit.replace(
        "ExecStart=/usr/bin/containerd\n",
        f"Environment=CONTAINERD_CONFIG={vendor}\nExecStart=/usr/bin/containerd --config ${{CONTAINERD_CONFIG}}\n",
    )
    del release
    return Outfit(
        {
            vendor: f"version = 2\n\n{_cri(_V2)}{_neighbours(_V2, neighbour)}",
            "/usr/lib/systemd/system/containerd.service": unit,
        },
        os_release="ID=flatcar\nID_LIKE=coreos\n",
        config=vendor,
        durable="/etc/systemd/system/containerd.service.d/90-flox-node.conf",
    )


OUTFITS: dict[str, Callable[[str, str], Outfit]] = {
    "plain": _plain,
    "eks-al2023": _eks_al2023,
    "eks-al2": _eks_al2,
    "k3s": _rancher("k3s", "k3s.service", "server"),
    "k3s-agent": _rancher("k3s", "k3s-agent.service", "agent"),
    "k3s-drop-ins": _rancher("k3s", "k3s.service", "server", imports=True),
    "rke2": _rancher("rke2", "rke2-server.service", "server"),
    "rke2-agent": _rancher("rke2", "rke2-agent.service", "agent"),
    "k0s": _k0s,
    "microk8s": _microk8s,
    "kind": _kind,
    "minikube": _minikube,
    "aks": _aks,
    "gke-ubuntu": _gke_ubuntu,
    "flatcar": _flatcar,
}
RELEASES = {"k3s-drop-ins": ("2.1",), "kind": ("1.7", "2.1", "2.3")}
"""The containerds that a platform has, where that is not 1.7 and 2.1."""
