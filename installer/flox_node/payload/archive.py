"""A payload as one file: a tar, compressed with zstd or gzip, that is read in one pass and trusted in nothing.

The archive ends in a digest of all its bytes before: compressed formats have bits that no decompressor looks at, and a
truncated download is told from a damaged one. The digest lies where decompressors skip it (a skippable zstd frame, an
extra field of an empty gzip member), so `tar -xf` works as with any other archive.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from flox_node.errors import CorruptError, UsageError
from flox_node.host.trees import CHUNK, STORE_MTIME, Entry, Kind
from flox_node.payload import manifest as manifests
from flox_node.payload.source import FolderPayload, Item, Payload, Work

_ZSTD_LEVEL = 9
_GZIP_LEVEL = 6
_MAX_READ = 1 << 20  # bytes; the most that one step of reading an archive may want (tar reads a long name at once)
_MAX_MANIFEST = 64 << 20  # bytes
_MAX_WINDOW = 1 << 27  # bytes; zstd's own limit without --long
_KINDS: dict[bytes, Kind] = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink"}


def open_payload(source: Path) -> Payload:
    """The payload in a folder, a `.tar.zst` or a `.tar.gz`, its manifest read and checked.

    Raises:
        UsageError: there is nothing, or something else.
        CorruptError: its manifest is damaged.
    """
    if source.is_dir():
        return FolderPayload(source)
    if not source.is_file():
        raise UsageError(f"There is no payload at {source}.", remedy="Give a payload's folder or its archive.")
    return ArchivePayload(source)


def compression_of(path: Path) -> Compression | None:
    """How a payload of this name is compressed, or None when the name is a folder's."""
    if path.name.endswith((".tar.zst", ".tar.gz")):
        return _Zstd() if path.name.endswith(".zst") else _Gzip()
    return None


def write_archive(folder: Path, destination: Path) -> None:
    """Pack a payload's folder. The same folder gives the same bytes, on every machine and at any time."""
    compression = compression_of(destination)
    if compression is None:
        raise UsageError(f"{destination} is not named like an archive (.tar.zst or .tar.gz).")
    with open(destination, "wb") as file:
        digesting = _DigestingWriter(file)
        with (
            compression.writer(cast("BinaryIO", digesting)) as compressed,
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK) as tar,
        ):
            _pack(folder, tar)
        file.write(compression.trailer(digesting.sha256.digest()))
        file.flush()
        os.fsync(file.fileno())


class ArchivePayload:
    """A payload as one archive. Each `each()` reads the archive from its start to its last byte."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        compression = compression_of(archive)
        if compression is None:
            raise UsageError(f"{archive} is neither a folder nor named like an archive (.tar.zst or .tar.gz).")
        self._compression = compression
        with self._members() as members:
            self.manifest = _read_manifest(members)

    def each(self, work: Work, wanted: AbstractSet[str] | None = None) -> None:
        """See `Payload.each`."""
        with self._members(to_the_end=True) as members:
            if _read_manifest(members) != self.manifest:
                raise CorruptError(f"{self._archive} changed while it was read.")
            groups = itertools.groupby(_in_order(members), key=_group)
            for expected, item in _expected(self.manifest):
                name, entries = next(groups, ("", iter(())))
                if name != expected:
                    raise CorruptError(
                        f"{expected} is missing from the payload, or out of order: {name or 'its end'} is in its place."
                    )
                if item is None:
                    _expect_folder(name, entries)
                elif wanted is None or item.path in wanted or isinstance(item, manifests.PayloadFile):
                    depth = name.count("/") + 1
                    work(item, (_below(entry, depth) for entry in entries))
            for name, _ in groups:
                raise CorruptError(f"{name} is in the payload, but its manifest does not name it.")

    @contextmanager
    def _members(self, *, to_the_end: bool = False) -> Iterator[Iterator[Entry]]:
        """The archive's members; with `to_the_end`, its digest is checked after the last of them."""
        length = len(self._compression.trailer(bytes(32)))
        with open(self._archive, "rb") as file:
            raw = _DigestingReader(file, os.fstat(file.fileno()).st_size - length)
            forward = _Forward(self._compression.reader(cast("BinaryIO", raw)))
            yield _read_tar(forward)
            if to_the_end:
                while forward.read(_MAX_READ):
                    pass
                while raw.read(_MAX_READ):
                    pass
                if file.read() != self._compression.trailer(raw.sha256.digest()):
                    raise CorruptError(f"{self._archive} is damaged or cut short: its digest does not match.")


def _pack(folder: Path, tar: tarfile.TarFile) -> None:
    payload = FolderPayload(folder)
    with open(folder / manifests.NAME, "rb") as file:
        _add(tar, manifests.NAME, Entry((), "file", 0o444, size=os.fstat(file.fileno()).st_size), file)
    for name, item in _expected(payload.manifest):
        if item is None:
            _add(tar, name, Entry((), "directory", 0o755))
            continue
        for entry in payload.tree(item):
            member = "/".join((name, *entry.path))
            if entry.kind == "file":
                with open(folder / member, "rb") as file:
                    _add(tar, member, entry, file)
            else:
                _add(tar, member, entry)


def _add(tar: tarfile.TarFile, name: str, entry: Entry, data: IO[bytes] | None = None) -> None:
    info = tarfile.TarInfo(name)
    info.type = next(kind for kind, word in _KINDS.items() if word == entry.kind)
    info.mode, info.mtime, info.size, info.linkname = entry.mode, STORE_MTIME, entry.size, entry.target
    tar.addfile(info, data)


def _expected(manifest: manifests.Manifest) -> Iterator[tuple[str, Item | None]]:
    """Every name of a payload's archive after its manifest, in order; None for a folder of the payload's own."""
    folders: set[str] = set()
    for file in manifest.files:
        parts = file.path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                yield folder, None
        yield file.path, file
    yield "store", None
    for path in manifest.store_paths:
        yield f"store/{path.name}", path


def _read_manifest(members: Iterator[Entry]) -> manifests.Manifest:
    first = next(members, None)
    if first is None or first.path != (manifests.NAME,) or first.kind != "file" or first.size > _MAX_MANIFEST:
        raise CorruptError(f"The archive is no payload: it does not begin with {manifests.NAME}.")
    return manifests.parse(b"".join(map(bytes, first.chunks())))


def _read_tar(plain: _Forward) -> Iterator[Entry]:
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # kept for random access; memory must not grow with the payload
                yield _entry(info, plain)
    except CorruptError:
        raise
    except Exception as error:  # tarfile answers damaged headers with errors of many kinds, not only its own
        raise CorruptError(f"The archive is damaged: {error}.") from error


def _entry(info: tarfile.TarInfo, plain: _Forward) -> Entry:
    kind = _KINDS.get(info.type)
    parts = tuple(info.name.split("/"))
    if kind is None or info.sparse is not None:
        raise CorruptError(f"The archive holds {info.name!r}, which is no file, folder or symlink.")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise CorruptError(f"The archive holds {info.name!r}, which is no path below the payload.")
    if kind == "file":
        return Entry(parts, kind, info.mode, info.size, chunks=lambda: plain.chunks(info.offset_data, info.size))
    return Entry(parts, kind, info.mode, target=info.linkname if kind == "symlink" else "")


def _in_order(members: Iterator[Entry]) -> Iterator[Entry]:
    """The members, each inside a folder that came before it; within a group nothing twice, as a tree is walked."""
    folders: list[tuple[str, ...]] = [()]
    group, before = "", [b""]
    for entry in members:
        while entry.path[: len(folders[-1])] != folders[-1]:
            folders.pop()
        key = [os.fsencode(part) for part in entry.path]
        if folders[-1] != entry.path[:-1] or (_group(entry) == group and key <= before):
            raise CorruptError(f"The archive holds {'/'.join(entry.path)!r} twice or out of order.")
        if entry.kind == "directory":
            folders.append(entry.path)
        group, before = _group(entry), key
        yield entry


def _group(entry: Entry) -> str:
    return "/".join(entry.path[:2] if entry.path[0] == "store" else entry.path)


def _expect_folder(name: str, entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.kind != "directory":
            raise CorruptError(f"{name} is not a folder.")


def _below(entry: Entry, depth: int) -> Entry:
    return Entry(entry.path[depth:], entry.kind, entry.mode, entry.size, entry.target, entry.chunks)


# compression


class Compression(Protocol):
    """One compressed form: fixed settings, so that the same tar gives the same bytes."""

    def writer(self, raw: BinaryIO) -> IO[bytes]:
        """Compress into `raw`; closing it leaves `raw` open."""
        ...

    def reader(self, raw: BinaryIO) -> IO[bytes]:
        """Decompress from `raw`."""
        ...

    def trailer(self, digest: bytes) -> bytes:
        """What follows the compressed data and carries its SHA-256; its length never changes."""
        ...


_TAG = b"flox-node sha256"


class _Zstd:
    def writer(self, raw: BinaryIO) -> IO[bytes]:
        import zstandard  # 10 ms, and a folder needs none of it

        parameters = zstandard.ZstdCompressionParameters.from_level(_ZSTD_LEVEL, write_checksum=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        return cast("IO[bytes]", compressor.stream_writer(raw, closefd=False))

    def reader(self, raw: BinaryIO) -> IO[bytes]:
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return cast("IO[bytes]", _ZstdReader(decompressor.stream_reader(raw, closefd=False), zstandard.ZstdError))

    def trailer(self, digest: bytes) -> bytes:
        content = _TAG + digest
        return struct.pack("<II", 0x184D2A5F, len(content)) + content


class _ZstdReader:
    """zstandard's errors as the OSError that the standard library's decompressors raise."""

    def __init__(self, stream: IO[bytes], error: type[Exception]) -> None:
        self._stream = stream
        self._error = error

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except self._error as error:
            raise OSError(str(error)) from error


class _Gzip:
    def writer(self, raw: BinaryIO) -> IO[bytes]:
        return cast("IO[bytes]", gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0))

    def reader(self, raw: BinaryIO) -> IO[bytes]:
        return cast("IO[bytes]", gzip.GzipFile("", "rb", fileobj=raw))

    def trailer(self, digest: bytes) -> bytes:
        content = _TAG + digest
        extra = b"FN" + struct.pack("<H", len(content)) + content  # one subfield, RFC 1952 section 2.3.1.1
        header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H", len(extra)) + extra
        return header + b"\x03\x00" + bytes(8)


class _DigestingWriter:
    """Passes bytes on to a file and keeps their digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class _DigestingReader:
    """Reads the first `limit` bytes of a file and keeps their digest."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._left = max(limit, 0)
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= len(data)
        self.sha256.update(data)
        return data


class _Forward:
    """A decompressed stream as the seekable file that tarfile wants: forward only, and never much at once.

    The limit is what keeps a hostile header (a name of a gigabyte) from filling the memory.
    """

    def __init__(self, plain: IO[bytes]) -> None:
        self._plain = plain
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise CorruptError("The archive's headers lead backwards.")
        while position > self._position and self.read(min(position - self._position, _MAX_READ)):
            pass
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise CorruptError("The archive has a header of absurd size.")
        parts = []
        try:
            while size > 0 and (data := self._plain.read(size)):
                parts.append(data)
                size -= len(data)
                self._position += len(data)
        except (zlib.error, EOFError, OSError) as error:
            raise CorruptError(f"The archive is damaged or cut short: {error}.") from error
        return b"".join(parts)

    def chunks(self, start: int, size: int) -> Iterator[bytes]:
        self.seek(start)
        while size > 0:
            data = self.read(min(size, CHUNK))
            if not data:
                raise CorruptError("The archive is cut short: it ends in the middle of a file.")
            size -= len(data)
            yield data
