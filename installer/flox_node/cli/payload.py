"""`flox-node payload`: build, fetch, inspect and verify payloads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flox_node.cli.fetching import SOURCES, BasicFile, BearerFile, Ca, Sha256, named, progress
from flox_node.cli.output import Result, application, command

if TYPE_CHECKING:
    from flox_node.payload import Manifest

app = application("Build, fetch, inspect and verify payloads: what flox-node puts on a node.")

Source = Annotated[Path, typer.Argument(help="A payload's folder, or its .tar.zst or .tar.gz.", show_default=False)]


@command(
    app,
    example="flox-node payload build --entry flox=/nix/store/<hash>-flox-1.14.1/bin/flox "
    "--entry git=/nix/store/<hash>-git-2.51.0/bin/git --entry nix=/nix/store/<hash>-nix-2.31.5/bin/nix "
    "--entry nix-store=/nix/store/<hash>-nix-2.31.5/bin/nix-store --wheels dist "
    "--python /nix/store/<hash>-python3-3.13.9/bin/python3 -o flox-node.tar.zst",
)
def build(
    entry: Annotated[list[str], typer.Option(help="NAME=/nix/store/... of a program; may be repeated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a name in .tar.zst or .tar.gz.")],
    store: Annotated[Path, typer.Option(help="The folder that holds nix/store and nix/var/nix/db.")] = Path("/"),
    wheels: Annotated[
        Path | None,
        typer.Option(help="A folder with the wheels of flox-node and all it needs, to put into the payload."),
    ] = None,
    python: Annotated[str, typer.Option(help="/nix/store/... of the Python that runs them.")] = "",
    path: Annotated[list[str] | None, typer.Option(help="A further store path to hold; may be repeated.")] = None,
    registration: Annotated[
        Path | None, typer.Option(help="The output of nix-store --dump-db, where the store has no database.")
    ] = None,
    shim: Annotated[
        Path | None, typer.Option(help="The built flox-runtime; by default the one that this flox-node brings.")
    ] = None,
    system: Annotated[
        str, typer.Option(help="The Nix system of the nodes.", show_default="this machine's")
    ] = f"{os.uname().machine}-linux",
) -> Result:
    """Build a payload out of a Nix store. The same input gives the same bytes."""
    from flox_node import __version__
    from flox_node.errors import UsageError
    from flox_node.payload.build import Recipe, bundled_shim
    from flox_node.payload.build import build as build_payload

    named = [*entry, f"--python={python}"] if wheels or python else entry
    malformed = [text for text in named if not text.partition("=")[2].startswith("/nix/store/")]
    if malformed:
        raise UsageError(f"{malformed[0]} is not NAME=/nix/store/...")
    recipe = Recipe(
        store_root=store,
        entry_points={name: target for name, _, target in (text.partition("=") for text in entry)},
        shim=shim or bundled_shim(system),
        version=__version__,
        system=system,
        extra_paths=tuple(path or ()),
        registration=registration,
        wheels=wheels,
        python=python,
    )
    return _told(build_payload(recipe, output), "built")


@command(
    app,
    example="flox-node payload pull https://example.org/flox-node.tar.zst --sha256 <digest> -o flox-node.tar.zst",
)
def pull(
    source: Annotated[str, typer.Argument(help=SOURCES, show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to, in .tar.zst or .tar.gz.")],
    sha256: Sha256 = "",
    bearer_file: BearerFile = None,
    basic_file: BasicFile = None,
    ca: Ca = None,
) -> Result:
    """Fetch a payload, verified. An interrupted fetch goes on where it stopped; what is there already is not fetched.

    Proxies are taken from the environment (HTTPS_PROXY, NO_PROXY).
    """
    from flox_node.payload import obtain, open_payload
    from flox_node.payload.fetch import Access

    access = Access.of(bearer_file=bearer_file, basic_file=basic_file, ca=ca)
    with progress() as tell:
        obtain.pull(named(source), output, sha256, access, tell)
    return _told(open_payload(output).manifest, "pulled")


@command(app, example="flox-node payload push flox-node.tar.zst oci://registry.example.org/flox-node/payload:1.0")
def push(
    archive: Annotated[Path, typer.Argument(help="A payload's archive.", show_default=False)],
    reference: Annotated[str, typer.Argument(help="oci://REGISTRY/NAME[:TAG]", show_default=False)],
    bearer_file: BearerFile = None,
    basic_file: BasicFile = None,
    ca: Ca = None,
) -> Result:
    """Put a payload into an OCI registry; what is printed is the reference to pull it by."""
    from flox_node.payload import open_payload, registry
    from flox_node.payload.fetch import Access

    open_payload(archive)
    access = Access.of(bearer_file=bearer_file, basic_file=basic_file, ca=ca)
    done = str(registry.push(archive, registry.Reference.parse(reference), access))
    return Result({"reference": done}, done)


@command(app, example="flox-node payload inspect flox-node.tar.zst")
def inspect(source: Source) -> Result:
    """Show what a payload holds. Only its manifest is read."""
    from flox_node.payload import open_payload
    from flox_node.payload.manifest import dump

    manifest = open_payload(source).manifest
    return Result(json.loads(dump(manifest)), lambda: _held(manifest))


@command(app, example="flox-node payload verify flox-node.tar.zst")
def verify(source: Source) -> Result:
    """Compare every bit of a payload with its manifest; exit code 8 names what is damaged."""
    from flox_node.payload import open_payload
    from flox_node.payload.verify import verify as verify_payload

    return _told(verify_payload(open_payload(source)), "whole")


@command(app, example="flox-node payload sbom /payload --site-packages /opt/flox-node/lib/python3.13/site-packages")
def sbom(
    source: Source,
    site_packages: Annotated[
        list[Path] | None, typer.Option(help="A folder with Python distributions of the image; may be repeated.")
    ] = None,
    base_image: Annotated[str, typer.Option(help="The reference of the image's base.")] = "",
    created: Annotated[
        int, typer.Option(help="When, in seconds since the epoch.", envvar="SOURCE_DATE_EPOCH", show_default=True)
    ] = 0,
) -> Result:
    """Print the bill of materials of an image with this payload, as SPDX 2.3 in JSON."""
    from flox_node.payload import open_payload
    from flox_node.payload.sbom import sbom as make_sbom

    document = make_sbom(
        open_payload(source), site_packages=site_packages or (), base_image=base_image, created=created
    )
    return Result({"document": json.loads(document)}, document)


def _held(manifest: Manifest) -> Iterator[Any]:
    from rich.table import Table

    yield f"flox-node {manifest.version} for {manifest.system}, {_mebibytes(manifest.size)}"
    for name, target in manifest.entry_points.items():
        yield f"  {name:<18} {target}"
    table = Table("store path", "size", title=f"payload {manifest.id}", title_justify="left", box=None)
    table.columns[1].justify = "right"
    for path in sorted(manifest.store_paths, key=lambda path: path.nar_size, reverse=True):
        table.add_row(path.path, _mebibytes(path.nar_size))
    for file in manifest.files:
        table.add_row(file.path, _mebibytes(file.size))
    yield table


def _told(manifest: Manifest, word: str) -> Result:
    count = len(manifest.store_paths)
    body = {
        "result": word,
        "id": manifest.id,
        "version": manifest.version,
        "system": manifest.system,
        "store_paths": count,
        "size": manifest.size,
    }
    return Result(body, f"{word}: payload {manifest.id} ({count} store paths, {_mebibytes(manifest.size)})")


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
