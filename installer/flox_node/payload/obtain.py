"""A payload from wherever the user says: a folder, an archive, a URL, a registry."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flox_node.errors import CorruptError, UsageError
from flox_node.payload import archive, fetch, registry
from flox_node.payload.fetch import Access, Progress

CACHE = Path("/var/cache/flox-node")
"""Where an install keeps what it fetches until it is done, so that an interrupted one goes on where it stopped."""


def pull(source: str, output: Path, sha256: str, access: Access, progress: Progress) -> None:
    """Bring a payload to the file `output`, verified.

    sha256: of the archive; needed for a plain URL, as a registry's reference carries its own. "" where there is none.

    Raises:
        UsageError: the source is none, needs a digest, or `output` is named unlike an archive.
        OutsideError: it cannot be fetched.
        CorruptError: it is something else.
    """
    _require_archive_name(output)
    wanted = _wanted(source, sha256)
    output.parent.mkdir(parents=True, exist_ok=True)
    if source.startswith("oci://"):
        registry.pull(registry.Reference.parse(source), output, access, progress)
        _require(output, wanted)
    elif fetch.is_url(source):
        fetch.download(source, output, wanted, fetch.Client(access), progress)
    else:
        _copy(Path(source), output, wanted)
    if not output.name.endswith(ending := _ending(output)):
        raise UsageError(f"{output} is whole, but named unlike what it is: rename it to end in {ending}.")


@contextmanager
def obtained(source: str, sha256: str, access: Access, progress: Progress, *, cache: Path = CACHE) -> Iterator[Path]:
    """The path of a payload; what had to be fetched for it is gone once the work with it succeeded.

    Raises:
        As `pull`.
    """
    if not fetch.is_url(source):
        if sha256:
            _require(Path(source), _wanted(source, sha256))
        yield Path(source)
        return
    wanted = _wanted(source, sha256)
    name = hashlib.sha256(f"{fetch.shown(source)} {wanted}".encode()).hexdigest()[:16]
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = cache / f"{name}.download"
    if source.startswith("oci://"):
        registry.pull(registry.Reference.parse(source), here, access, progress)
        _require(here, wanted)
    else:
        fetch.download(source, here, wanted, fetch.Client(access), progress)
    whole = here.with_name(name + _ending(here))
    os.replace(here, whole)
    try:
        yield whole
    except BaseException:
        os.replace(whole, here)  # the next run finds it
        raise
    whole.unlink()
    with suppress(OSError):
        cache.rmdir()


def _wanted(source: str, sha256: str) -> str:
    if not sha256 and fetch.is_url(source) and not source.startswith("oci://"):
        raise UsageError(
            "A payload from a URL needs the digest that it must have.",
            remedy="Give --sha256 with what the release names, or what `sha256sum` says of your own file.",
        )
    return fetch.checked_sha256(sha256) if sha256 else ""


def _require(file: Path, wanted: str) -> None:
    if not wanted:
        return
    if not file.is_file():
        raise UsageError(f"{file} is no archive: a folder has no one SHA-256.", remedy="Leave --sha256 out.")
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != wanted:
        raise CorruptError(f"{file} has the SHA-256 {found}, not {wanted}. Nothing was unpacked.")


def _copy(source: Path, output: Path, wanted: str) -> None:
    part = output.with_name(output.name + ".part")
    with _removed_on_failure(part):
        if source.is_dir():
            archive.write_archive(source, output.with_name("." + output.name))
            os.replace(output.with_name("." + output.name), part)
        elif source.is_file():
            shutil.copyfile(source, part)
        else:
            raise UsageError(
                f"There is no payload at {source}.", remedy="Give a folder, an archive, https:// or oci://."
            )
        _require(part, wanted)
        os.replace(part, output)


def _ending(file: Path) -> str:
    """How an archive of these bytes is named.

    Raises:
        CorruptError: it is none.
    """
    with open(file, "rb") as opened:
        head = opened.read(4)
    if head == b"\x28\xb5\x2f\xfd":
        return ".tar.zst"
    if head[:2] == b"\x1f\x8b":
        return ".tar.gz"
    raise CorruptError("What was fetched is no payload: it is compressed with neither zstd nor gzip.")


def _require_archive_name(output: Path) -> None:
    if archive.compression_of(output) is None:
        raise UsageError(f"{output} is not named like an archive (.tar.zst or .tar.gz).")


@contextmanager
def _removed_on_failure(file: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise
