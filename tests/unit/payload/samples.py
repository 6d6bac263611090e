"""A small Nix store and the payload that is built of it."""

import os
from dataclasses import replace
from pathlib import Path

from flox_node.host.trees import TreeWriter, feed, walk
from flox_node.payload.build import Recipe
from flox_node.payload.manifest import StorePath, registration
from flox_node.payload.nar import nar_of

LIBC = "/nix/store/" + "1" * 32 + "-libc-2"
TOOL = "/nix/store/" + "2" * 32 + "-tool-1.0"
LONE = "/nix/store/" + "3" * 32 + "-lone"


def make_recipe(folder: Path, *, lone: bytes = b"not needed by anything\n") -> Recipe:
    """A store below `folder`: a tool that needs a library, and a path that is a single file and that nothing needs."""
    draft = folder / "draft"
    _write(draft / "libc/lib/libc.so", b"\x7fELF" + bytes(range(256)) * 20)
    (draft / "libc/lib/libc.so.6").symlink_to("libc.so")
    (draft / "libc/empty").mkdir()
    _write(draft / "tool/bin/tool", f"#!{LIBC}/lib/ld\n".encode(), executable=True)
    (draft / "tool/bin/alias").symlink_to(f"{TOOL}/bin/tool")
    _write(draft / "tool/share/none", b"")
    _write(draft / "tool/lib/a_thing-1.2.dist-info/METADATA", b"Metadata-Version: 2.4\nName: A.Thing\nVersion: 1.2\n\n")
    _write(draft / ("tool/share/" + "long" * 40), b"a name that no plain tar header holds")
    _write(draft / "tool/share/F\u0151.crt", b"a name that is not ASCII")
    _write(Path(os.fsdecode(os.fsencode(draft) + b"/tool/share/\xff\xfe")), b"a name that is not UTF-8")
    _write(draft / "lone", lone)
    references = {LIBC: (), TOOL: (LIBC, TOOL), LONE: ()}
    paths = []
    for name, path in (("libc", LIBC), ("tool", TOOL), ("lone", LONE)):
        destination = folder / "root" / path.lstrip("/")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with TreeWriter(destination) as writer:
            feed(walk(draft / name), writer)
        found = nar_of(walk(destination))
        paths.append(StorePath(path, found.nar_hash, found.nar_size, references[path]))
    (folder / "registration").write_bytes(registration(paths))
    (folder / "shim").write_bytes(b"\x7fELF the shim")
    return Recipe(
        store_root=folder / "root",
        entry_points={"tool": f"{TOOL}/bin/tool", "nix-store": f"{TOOL}/bin/alias"},
        shim=folder / "shim",
        version="0.1.0",
        registration=folder / "registration",
    )


def with_lone(recipe: Recipe) -> Recipe:
    """The same, with the path that no entry point needs."""
    return replace(recipe, extra_paths=(LONE,))


def _write(path: Path, data: bytes, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755 if executable else 0o644)
