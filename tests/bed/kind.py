"""kind without an engine: its programs, its own code for cluster files and patches, and its nodes' files.

The code and the files come out of kind's module (Apache-2.0) when they are asked for; nothing of it is kept here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bed import cache, debian, golang, releases

RELEASES = ("0.27.0", "0.29.0", "0.31.0", "0.33.0")
"""What people have: Debian trixie's, two in between, and the newest. The last one's code is what is asked."""
DEBIAN_SUITES = {"0.27": "trixie", "0.33": "sid"}
"""Programs of kind that Debian has built; that of sid goes on to newer releases."""
HOOK = "/kind/bin/mount-product-files.sh"
START = "/usr/local/bin/kind-start"
_ENGINE = Path(__file__).parents[1] / "doubles/engine.py"
_CHECK = golang.TOOLS / "kind/main.go"
# The entrypoint is what an engine starts, before systemd. Here systemd is first, so a unit runs those functions of it
# that edit files of the node; the others are about an engine's network and cgroups. As rootless, because the machine
# under a node of the bed lets nobody lower an oom score either.
_START = """\
#!/bin/bash
set -o errexit -o nounset -o pipefail
source <(sed '/^# validate state$/,$d' /usr/local/bin/entrypoint)
userns=1
configure_containerd
configure_proxy
fix_machine_id
fix_product_name
fix_product_uuid
"""


def node_config(release: str) -> str:
    """The configuration of containerd on the nodes of a release, before any patch and before the entrypoint."""
    return (_source(release) / "images/base/files/etc/containerd/config.toml").read_text()


def entrypoint(release: str) -> str:
    """The script that is the first process of a node."""
    return (_source(release) / "images/base/files/usr/local/bin/entrypoint").read_text()


def program(release: str) -> Path:
    """kind itself, as Debian built it: "0.27" of trixie, "0.33" (or a newer one by now) of sid."""
    suite = DEBIAN_SUITES[release]

    def unpack(folder: Path) -> None:
        debian.unpack(suite, ["kind"], folder, closure=False)

    return cache.artefact(f"kind-program-{release}", {"suite": suite, "revision": 1}, unpack) / "usr/bin/kind"


def put_engine(programs: Path) -> None:
    """The engine's double (tests/doubles/engine.py) as `docker` in a folder of programs."""
    docker = programs / "docker"
    docker.write_text(f'#!/bin/sh\nexec {sys.executable} -ISB {_ENGINE} "$@"\n')
    docker.chmod(0o755)


def node_layer() -> Path:
    """What kind's base image lays over a Debian: its files where its Dockerfile puts them, and jq, which they call."""
    recipe = {"release": RELEASES[-1], "start": _START, "revision": 1}
    return cache.artefact("kind-node", recipe, _build_node_layer)


def load(cluster_file: Path) -> dict[str, object]:
    """What kind makes of a cluster file, with its defaults. RuntimeError with kind's own text where it refuses it."""
    found: dict[str, object] = json.loads(_check("load", cluster_file))
    return found


def patched(cluster_file: Path, config: Path) -> str:
    """A node's configuration after the `containerdConfigPatches` of a cluster file."""
    return _check("patch", cluster_file, config)


def _check(*words: str | Path) -> str:
    recipe = {"kind": RELEASES[-1], "main": _CHECK.read_text()}
    program = cache.artefact("kind-check", recipe, _build) / "check"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def _build(folder: Path) -> None:
    module = _source(RELEASES[-1])
    overlay = folder / "overlay.json"
    overlay.write_text(json.dumps({"Replace": {str(module / "pkg/check/main.go"): str(_CHECK)}}))
    golang.vet(module, f"-overlay={overlay}", "./pkg/check")
    golang.build(module, f"-overlay={overlay}", "./pkg/check", into=folder)


def _source(release: str) -> Path:
    def download(folder: Path) -> None:
        environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
        command = [golang.go(), "mod", "download", "-json", f"sigs.k8s.io/kind@v{release}"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        shutil.copytree(json.loads(done.stdout)["Dir"], folder / "kind")
        subprocess.run(["chmod", "-R", "u+w", folder / "kind"], check=True)

    return cache.artefact(f"kind-{release}", {"release": release, "revision": 1}, download) / "kind"


def _build_node_layer(root: Path) -> None:
    debian.unpack("bookworm", ["jq", "libjq1", "libonig5"], root, closure=False)
    files = _source(RELEASES[-1]) / "images/base/files"
    shutil.copytree(files, root, dirs_exist_ok=True)
    start = root / START.lstrip("/")
    start.write_text(_START)
    for path in (start, root / "usr/local/bin/entrypoint", *(root / "kind/bin").iterdir()):
        path.chmod(0o755)
    # The lines of its Dockerfile that are no copies: the base of every container's specification, and enabled units.
    ctr = releases.program(releases.DEFAULT[-1], "ctr")
    spec = json.loads(subprocess.run([ctr, "oci", "spec"], capture_output=True, check=True).stdout)
    spec.setdefault("hooks", {}).setdefault("createContainer", []).append({"path": HOOK})
    spec["process"].pop("rlimits", None)
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(spec))
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    for unit in ("containerd.service", "kubelet.service", "undo-mount-hacks.service"):
        (wants / unit).symlink_to(f"/etc/systemd/system/{unit}")
    # What kubeadm leaves on a node.
    (root / "etc/kubernetes/manifests").mkdir(parents=True)
    (root / "var/lib/kubelet").mkdir(parents=True)
    (root / "var/lib/kubelet/config.yaml").write_text("kind: KubeletConfiguration\n")
    flags = "--container-runtime-endpoint=unix:///run/containerd/containerd.sock"
    (root / "var/lib/kubelet/kubeadm-flags.env").write_text(f'KUBELET_KUBEADM_ARGS="{flags}"\n')
