"""A web application in Python in several releases, as packages of the store, for what an update of it costs.

Its package is a script; the interpreter below it is a package of its own, and both have new releases.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bed import cache, store

PORT = 8080
# Which interpreter each release has: the second and the third change the application alone, the last two what it
# stands on, too.
INTERPRETERS = (1, 1, 1, 2, 3)
_REVISION = 2
_SCRIPT = """\
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"release {release}\\n")

    def log_message(self, *arguments):
        pass


ThreadingHTTPServer(("", {port}), Page).serve_forever()
"""


@dataclass(frozen=True)
class Release:
    """One release: its script, which interpreter it has, counted from 1, and the store paths of both."""

    number: int
    script: str
    interpreter: int
    web: str
    python: str


@dataclass(frozen=True)
class Program:
    """Every release, and the signed binary cache that has them: a folder to serve."""

    releases: tuple[Release, ...]
    cache_dir: Path
    public_key: str


def program() -> Program:
    """The releases, made if need be. Each has an interpreter of its own, as after an upgrade of what it is built on."""
    recipe = {"store": store.base().root.name, "script": _SCRIPT, "interpreters": INTERPRETERS, "revision": _REVISION}
    folder = cache.artefact("program", recipe, _build)
    known = json.loads((folder / "program.json").read_text())
    return Program(tuple(Release(**release) for release in known["releases"]), folder / "cache", known["public_key"])


def _build(folder: Path) -> None:
    base = store.base()
    builder = store.extended(folder / "root", base)
    pythons = {
        number: builder.add(
            f"python-{number}",
            f"python3-3.13.{number}",
            [base.paths["python3"], number],
            functools.partial(_python, base, folder / "root", number),
        )
        for number in sorted(set(INTERPRETERS))
    }
    releases = []
    for number, interpreter in enumerate(INTERPRETERS, 1):
        script = _SCRIPT.format(release=number, port=PORT)
        lines = [f"#!{pythons[interpreter]}/bin/python3 -IB", script]

        def web(out: Path, path: str, lines: list[str] = lines) -> None:
            store.write_program(out / "bin/web", lines)

        path = builder.add(f"web-{number}", f"web-{number}", lines, web)
        releases.append(Release(number, script, interpreter, path, pythons[interpreter]))
    made = builder.finish()
    nix = f"{made.paths['nix']}/bin/nix"
    secret = made.run(nix, "key", "generate-secret", "--key-name", f"{store.KEY_NAME}-program")
    public = made.run(nix, "key", "convert-secret-to-public", input=secret).decode().strip()
    (made.root / "secret").write_bytes(secret)
    made.run(
        nix, "copy", "--to", "file:///cache?secret-key=/secret&compression=zstd", *(release.web for release in releases)
    )
    (made.root / "cache").rename(folder / "cache")
    shutil.rmtree(made.root)
    known = {"public_key": public, "releases": [asdict(release) for release in releases]}
    (folder / "program.json").write_text(json.dumps(known))


def _python(base: store.Store, root: Path, number: int, out: Path, path: str) -> None:
    shutil.copytree(
        base.real(base.paths["python3"]),
        out,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for folder in (out, *out.rglob("*")):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o755)
    (out / f"lib/{store.PYTHON}/release.py").write_text(f"RELEASE = {number}\n")
    store.compile_python(store.Store(root, {}), f"/{out.relative_to(root)}/bin/{store.PYTHON}", out, path)
