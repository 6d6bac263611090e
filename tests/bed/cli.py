"""The payload's Nix, git and Python, and the double of the Flox CLI, in the store of `tests.bed.environment`."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bed import store
from tests.bed.environment import (
    ACTIVATIONS,
    BUSYBOX,
    ENVIRONMENT,
    INTERPRETER,
    LINK,
    ROOT,
    SINGLE,
    script,
    store_path,
)

FLOX = store_path("m", "flox-1.14.1")
DOUBLE = ROOT / "tests/doubles/flox/flox.py"


@dataclass(frozen=True)
class Cli:
    """What was added: the program nix-store, and what a Nix database is told of each path."""

    nix_store: str
    registered: dict[str, str]


def add(root: Path) -> Cli:
    """Add it below a node's root, with the payload's manifest and entry points, but for nix-store's."""
    base = store.base()
    tools = [base.paths[name] for name in ("nix", "python3", "git", "busybox")]
    needed = _in_store(base, "--query", "--requisites", *tools).split()
    registered, references = {}, {}
    for path in needed:
        arguments = [f"{base.root}{path}", os.fspath(root / path.lstrip("/"))]
        if subprocess.run(["cp", "-alT", *arguments], check=False, stderr=subprocess.DEVNULL).returncode:
            subprocess.run(["cp", "-aT", *arguments], check=True)  # another file system
        registered[path] = _in_store(base, "--dump-db", path)
        references[path] = registered[path].splitlines()[5:]
    _make_flox(root / FLOX.lstrip("/"), base)
    ours: dict[str, list[str]] = {path: [] for path in (BUSYBOX, ACTIVATIONS, INTERPRETER, SINGLE, LINK)}
    for path, of in {**ours, FLOX: tools, ENVIRONMENT: list(ours)}.items():
        references[path] = of
        registered[path] = "".join(f"{line}\n" for line in (path, "0" * 64, 96, "", len(of), *of))
    current = root / "opt/flox-node/current"
    (current / "bin").mkdir(parents=True)
    (current / "bin/busybox").symlink_to(f"{base.paths['busybox']}/bin/busybox")
    paths = [{"path": path, "references": of} for path, of in references.items()]
    entry_points = {"flox": f"{FLOX}/bin/flox", "nix-store": base.nix_store}
    (current / "manifest.json").write_text(json.dumps({"entry_points": entry_points, "store_paths": paths}))
    return Cli(base.nix_store, registered)


def _in_store(base: store.Store, *arguments: str) -> str:
    command = f'mkdir -p /nix; mount --bind {base.root}/nix /nix; exec {base.nix_store} "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "nix-store", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def _make_flox(folder: Path, base: store.Store) -> None:
    """The CLI's package. What its environments are made of is in this container's own."""
    programs = {name: f"{base.paths[name]}/bin" for name in ("nix", "git")}
    programs |= {"busybox": base.paths["busybox"], "activations": ACTIVATIONS}
    (folder / "share").mkdir(parents=True)
    (folder / "share/flox-double.json").write_text(json.dumps(programs))
    script(folder / "libexec/flox.py", DOUBLE.read_text())
    python = f"{base.paths['python3']}/bin/python3"
    script(
        folder / "bin/flox",
        f'#!{base.paths["busybox"]}/bin/sh\nexec {python} -IBS {FLOX}/libexec/flox.py "$@"\n',
    )
