"""A built environment whose flox-activations is the strict double, for tests of the shim that need no Nix."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tests.bed import golang

ROOT = Path(__file__).parents[2]


def store_path(letter: str, name: str) -> str:
    return f"/nix/store/{letter * 32}-{name}"


BUSYBOX = store_path("b", "busybox")
ACTIVATIONS = store_path("c", "flox-activations")
INTERPRETER = store_path("d", "flox-interpreter")
ENVIRONMENT = store_path("a", "environment-hello-run")
SINGLE = store_path("g", "single.txt")
LINK = store_path("h", "link")
OTHERS = store_path("i", "somebody-elses")
SCRIPTED = store_path("f", "environment-scripted-run")

RESOLUTION = {
    "environment": "demo/hello",
    "generation": 3,
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "mode": "run",
    "system": "x86_64-linux",
    "store_path": ENVIRONMENT,
}


def go_build(source: Path, output: Path, ldflags: str = "") -> None:
    """Build the program of a module, stripped and copied as on a node.

    A program as Go's linker leaves it takes a fifth longer to start: it writes through a mapping, in small pages.
    """
    with tempfile.TemporaryDirectory() as scratch:
        golang.build(source, ".", into=Path(scratch), ldflags=ldflags)
        (program,) = Path(scratch).iterdir()
        shutil.copy(program, output)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def make_store(nix: Path, scratch: Path) -> None:
    """A store with two environments, `hello` as Flox 1.9 and newer build it, `scripted` without flox-activations, and
    with a package of somebody else."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "no busybox: apt-get install busybox-static"

    def place(path: str) -> Path:
        target = nix / path.removeprefix("/nix/")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    shutil.copy(busybox, place(f"{BUSYBOX}/bin/busybox"))
    place(f"{BUSYBOX}/bin/sh").symlink_to("busybox")
    go_build(ROOT / "tests/doubles/flox-activations", scratch / "flox-activations")
    shutil.copy(scratch / "flox-activations", place(f"{ACTIVATIONS}/bin/flox-activations"))
    script(place(f"{INTERPRETER}/activate"), f"#! {BUSYBOX}/bin/sh -e\n")
    for environment in (ENVIRONMENT, SCRIPTED):
        for applet in ("sh", "cat", "env", "id", "ls", "pwd", "sleep", "touch", "true"):
            place(f"{environment}/bin/{applet}").symlink_to(f"{BUSYBOX}/bin/busybox")
        shell = f"#!{BUSYBOX}/bin/busybox sh\n"
        script(
            place(f"{environment}/bin/hello"),
            f'{shell}echo "hello from $FLOX_ENV: $*"; echo "pid $$ $GREETING $HOOKED"\n',
        )
        place(f"{environment}/manifest.lock").write_text(
            json.dumps(
                {
                    "lockfile-version": 1,
                    "manifest": {"version": 1, "vars": {"GREETING": "good morning"}},
                    "packages": [],
                }
            )
        )
        hook = place(f"{environment}/activate.d/hook-on-activate")
        hook.parent.mkdir(exist_ok=True)
        hook.write_text('echo noise of the hook\nsleep "${HOOK_SECONDS:-0}"\nexport HOOKED=yes\n')
        place(f"{environment}/requisites.txt").write_text(f"{BUSYBOX}\n{ACTIVATIONS}\n{INTERPRETER}\n{SINGLE}\n{LINK}")
    place(SINGLE).write_text("a store path may be a file\n")
    place(LINK).symlink_to(SINGLE)
    place(f"{OTHERS}/bin").mkdir(parents=True)
    place(f"{ENVIRONMENT}/libexec/flox-activations").symlink_to(f"{ACTIVATIONS}/bin/flox-activations")
    place(f"{ENVIRONMENT}/activate").symlink_to(f"{INTERPRETER}/activate")
    place(f"{ACTIVATIONS}/bin/activate").symlink_to("flox-activations")
    place(f"{SCRIPTED}/activate").symlink_to(f"{ACTIVATIONS}/bin/activate")
