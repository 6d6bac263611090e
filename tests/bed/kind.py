"""kind without an engine: its own code for cluster files and patches, and its nodes' files, out of its module."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.bed import cache, golang

RELEASES = ("0.27.0", "0.29.0", "0.31.0", "0.33.0")
"""What people have: Debian trixie's, two in between, and the newest. The last one's code is what is asked."""
_CHECK = golang.TOOLS / "kind/main.go"


def node_config(release: str) -> str:
    """The configuration of containerd on the nodes of a release, before any patch and before the entrypoint."""
    return (_source(release) / "images/base/files/etc/containerd/config.toml").read_text()


def entrypoint(release: str) -> str:
    """The script that is the first process of a node."""
    return (_source(release) / "images/base/files/usr/local/bin/entrypoint").read_text()


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
    module = folder / "module"
    shutil.copytree(_source(RELEASES[-1]), module)
    subprocess.run(["chmod", "-R", "u+w", module], check=True)
    (module / "pkg/check").mkdir()
    shutil.copy(_CHECK, module / "pkg/check/main.go")
    golang.build(module, "./pkg/check", into=folder)
    shutil.rmtree(module)


def _source(release: str) -> Path:
    def download(folder: Path) -> None:
        environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
        command = [golang.go(), "mod", "download", "-json", f"sigs.k8s.io/kind@v{release}"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        shutil.copytree(json.loads(done.stdout)["Dir"], folder / "kind")
        subprocess.run(["chmod", "-R", "u+w", folder / "kind"], check=True)

    return cache.artefact(f"kind-{release}", {"release": release, "revision": 1}, download) / "kind"
