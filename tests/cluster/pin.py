"""`python -m tests.cluster pin 1.33.13`: pin a Kubernetes release as a wrapper module under tests/tools.

`go install k8s.io/kubernetes/...@version` is refused because the module replaces its staging modules by folders of its
own repository; the wrapper takes them at the versions that are published for the release (v1.33.13 goes with v0.33.13).
"""

import json
import os
import re
import subprocess
from pathlib import Path

from tests.bed import golang
from tests.cluster import binaries


def pin(release: str) -> Path:
    """Write the wrapper module of a full release number ("1.33.13"); its folder. Needs the Go module proxy."""
    major, minor, patch = release.split(".")
    module = golang.TOOLS / f"kubernetes-{major}.{minor}"
    module.mkdir(exist_ok=True)
    answer = json.loads(_go(module, "mod", "download", "-json", f"k8s.io/kubernetes@v{release}"))
    upstream = Path(answer["GoMod"]).read_text()
    (module / "go.mod").write_text(wrap(upstream, release, staging=f"v0.{minor}.{patch}"))
    _go(module, "mod", "tidy")
    return module


def wrap(upstream: str, release: str, staging: str) -> str:
    """The wrapper's go.mod from that of k8s.io/kubernetes, whose version of a staging module is v0.0.0."""
    version, godebug = (re.search(rf"^{word} (\S+)$", upstream, re.MULTILINE) for word in ("go", "godebug"))
    assert version is not None
    modules = re.findall(r"^\s*(k8s\.io/\S+) => \./staging/", upstream, re.MULTILINE)
    requirements = re.findall(r"^\s+(\S+) (v\S+)(?: // indirect)?$", upstream, re.MULTILINE)
    requirements = [(name, staging if number == "v0.0.0" else number) for name, number in requirements]
    blocks = {
        "tool": [f"k8s.io/kubernetes/cmd/{program}" for program in sorted(binaries.PROGRAMS)],
        "require": [f"{name} {number}" for name, number in [("k8s.io/kubernetes", f"v{release}"), *requirements]],
        "replace": [f"{name} => {name} {staging}" for name in modules],
    }
    head = [f"module flox.test/kubernetes-{release.rpartition('.')[0]}", f"go {version[1]}"]
    if godebug is not None:
        head.append(f"godebug {godebug[1]}")
    body = ["\n\t".join([f"{word} (", *lines]) + "\n)" for word, lines in blocks.items()]
    return "\n\n".join([*head, *body]) + "\n"


def _go(module: Path, *arguments: str) -> str:
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    done = subprocess.run(
        [golang.go(), *arguments], cwd=module, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"go {' '.join(arguments)} in {module} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
