"""The options by which a payload is fetched, for every command that takes one from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flox_node.cli.output import is_quiet

if TYPE_CHECKING:
    from flox_node.payload import Payload

SOURCES = (
    "A folder, a .tar.zst or .tar.gz, https://..., or oci://REGISTRY/NAME@sha256:...; @FILE: what that file holds."
)
PayloadSource = Annotated[str, typer.Option("--payload", envvar="FLOX_NODE_PAYLOAD", help=SOURCES, show_default=False)]
Sha256 = Annotated[str, typer.Option("--sha256", help="What the archive must have; needed for a plain URL.")]
BearerFile = Annotated[Path | None, typer.Option("--bearer-file", help="A file with the token to fetch with.")]
BasicFile = Annotated[Path | None, typer.Option("--basic-file", help="A file with user:password to fetch with.")]
Ca = Annotated[Path | None, typer.Option("--ca", help="PEM certificates to trust instead of the system's.")]


@contextmanager
def opened(
    source: str, sha256: str, bearer_file: Path | None, basic_file: Path | None, ca: Path | None
) -> Iterator[Payload]:
    """The payload that the options name, fetched where it is elsewhere."""
    from flox_node.payload import obtain, open_payload
    from flox_node.payload.fetch import Access

    access = Access.of(bearer_file=bearer_file, basic_file=basic_file, ca=ca)
    with progress() as tell, obtain.obtained(named(source), sha256, access, tell) as path:
        yield open_payload(path)


def named(source: str) -> str:
    """The source itself, or what the file holds that `@FILE` names: pre-signed URLs are secrets.

    Raises:
        UsageError: there is no such file.
    """
    from flox_node.payload.fetch import secret

    return secret(Path(source[1:])) if source.startswith("@") else source


@contextmanager
def progress() -> Iterator[Callable[[int, int | None], None]]:
    """Shows on stderr how far a fetch is, in a terminal, from its first bytes on."""
    if is_quiet() or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
