"""Renders `daemonset/`: with kubectl where it is built, else with the few features of kustomize that we use.

`python -m tests.kustomize` writes daemonset/flox-node.yaml.
"""

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries

Object = dict[str, Any]

DAEMONSET = Path(__file__).parents[1] / "daemonset"
RENDERED = DAEMONSET / "flox-node.yaml"
HEADER = "# Rendered from daemonset/base, where the comments are: `make manifests`. Needs Kubernetes 1.31 or newer.\n"


def kubectl() -> Path | None:
    """The kubectl of the cluster tests; None where it is not built."""
    release = binaries.release()
    return None if "kubectl" in binaries.missing(release) else binaries.path(release, "kubectl")


def text(program: Path, folder: Path) -> str:
    """What `kubectl kustomize` prints."""
    done = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:  # it warns of what is deprecated
        raise RuntimeError(f"kubectl kustomize {folder}:\n{done.stderr}")
    return done.stdout


def objects(folder: Path) -> list[Object]:
    """The objects of a kustomization, in its order, by rules that a test holds against kubectl's."""
    return _built(folder, [])


@functools.cache
def _read(file: Path) -> list[Object]:
    return list(yaml.safe_load_all(file.read_text()))


def _built(folder: Path, found: list[Object]) -> list[Object]:
    (file,) = folder.glob("kustomization.yaml")
    kustomization = yaml.safe_load(file.read_text())
    kustomization.pop("sortOptions", None)
    for name in kustomization.pop("resources", []):
        path = folder / name
        found += _built(path, []) if path.is_dir() else copy.deepcopy(_read(path))
    for name in kustomization.pop("components", []):
        found = _built(folder / name, found)
    for patch in kustomization.pop("patches", []):
        for item in found:
            if patch["target"].items() <= {"kind": item["kind"], "name": item["metadata"]["name"]}.items():
                _patch(item, yaml.safe_load(patch["patch"]))
    for image in kustomization.pop("images", []):
        for item in found:
            if item["kind"] == "DaemonSet":
                _rename(item["spec"]["template"]["spec"]["containers"], image)
    kustomization.pop("apiVersion")
    kustomization.pop("kind")
    assert not kustomization, f"{file} uses {', '.join(kustomization)}, which tests/kustomize.py does not know"
    return found


def _patch(item: Object, operations: list[Object]) -> None:
    for operation in operations:
        *above, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place: Any = item
        for part in above:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key = int(last) if isinstance(place, list) and last != "-" else last
        if operation["op"] == "remove":
            del place[key]
        elif operation["op"] == "replace":
            _ = place[key]  # what is replaced has to be there
            place[key] = operation["value"]
        elif isinstance(place, list):
            place.insert(len(place) if key == "-" else key, operation["value"])
        else:
            place[key] = operation["value"]


def _rename(containers: list[Object], image: Object) -> None:
    for container in containers:
        name, _, tag = container["image"].rpartition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


if __name__ == "__main__":
    program = binaries.path(binaries.release(), "kubectl")
    RENDERED.write_text(HEADER + text(program, DAEMONSET / "base"))
    sys.stdout.write(f"{RENDERED.relative_to(Path.cwd())}\n")
