"""What of a configuration is ours, and the configuration without it: the baseline that every judgement starts from.

Ours are our own file in an imported folder, our tables in files of others, and the copies of them that a tool makes
which writes whole dumps back. What is in force while they are there may be of their making, so it is no baseline. A
file of our own's name in which others say something is a file of others.
"""

from __future__ import annotations

import copy
import dataclasses
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flox_node.containerd.config import schema
from flox_node.containerd.config.document import parse
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler, Patch, cut_out, is_our_binary, strip
from flox_node.containerd.config.effective import Effective, LoadedFile, MapReader, Reader, covers, load
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError
from flox_node.names import HANDLER

DROP_IN = "50-flox-node.toml"
HEAD = b"# flox-node: "
"""How the first line of a file of our own begins."""


@dataclass(frozen=True)
class PlacedEdit(Edit):
    """An edit of containerd's own configuration, with what the editor did."""

    kind: Literal["in-place", "drop-in"]
    patch: Patch


def drop_in_path(effective: Effective) -> str | None:
    """The place of our own file: the first pattern of the root's imports that takes it in; None on 1.x or without."""
    if not effective.containerd.merges_deeply:
        return None
    root = effective.root
    for entry in root.document.data.get("imports", ()):
        pattern = posixpath.normpath(posixpath.join(posixpath.dirname(root.path), entry))
        path = posixpath.join(posixpath.dirname(pattern), DROP_IN)
        if "*" not in posixpath.dirname(pattern) and covers(pattern, path):
            return path
    return None


def withdraw(effective: Effective, reader: Reader, handler: Handler) -> tuple[PlacedEdit, ...]:
    """The edits that take the handler out again, wherever it stands now; () where it is nowhere.

    A copy in a folder beside the root that nobody imports now is one, too: an import would bring it back. It works for
    a configuration that containerd would refuse as well, as far as its files can be read.

    Raises:
        RefusedError: the lines of a copy cannot be cut out alone.
    """
    found = {edit.path: edit for edit in withdraw_own_files(effective, reader)}
    for path in (file.path for file in _every_file(effective, reader, found) if file.exists and file.path not in found):
        source = reader.read_optional(path) or b""
        try:
            patch = strip(source, handler, effective.containerd)
        except RefusedError as error:
            raise RefusedError(f"{path}: {error.cause}", remedy=error.remedy) from None
        if patch.changed:
            found[path] = PlacedEdit(path, source, without_head(path, patch.result), "in-place", patch)
    for path in _unread_files(effective, reader):
        source = reader.read_optional(path) or b""
        bare = _unread_without_us(source, effective, handler)
        if path not in found and bare is not None:
            gone = Patch(bare, True, "", {}, added_runc=False, inner_runtime=None)
            found[path] = PlacedEdit(path, source, without_head(path, bare), "in-place", gone)
    return tuple(found.values())


def withdraw_own_files(effective: Effective, reader: Reader) -> tuple[PlacedEdit, ...]:
    """The edits that remove the files that are ours alone."""
    gone = Patch(b"", True, "", {}, added_runc=False, inner_runtime=None)
    return tuple(
        PlacedEdit(path, reader.read_optional(path), None, "drop-in", gone) for path in _own_files(effective, reader)
    )


def is_ours_alone(source: bytes, containerd: ContainerdVersion, handler: str) -> bool:
    """Whether a file says nothing but our handler; one that is empty or torn says nothing for anybody."""
    if not source.strip():
        return True
    try:
        data = copy.deepcopy(parse(source, containerd).data)
    except RefusedError:
        return True
    binary: object = None
    for plugin in schema.table(data, "plugins"):
        runtimes = schema.table(data, "plugins", plugin, "containerd", "runtimes")
        ours = runtimes.pop(handler, None)
        binary = schema.table(ours, "options").get("BinaryName") if isinstance(ours, dict) else binary
    data.pop("version", None)
    return not schema.meaning(data) and (source.startswith(HEAD) or is_our_binary(binary))


def without_head(path: str, rest: bytes) -> bytes:
    """What others say in a file of our own's name, without our first line."""
    is_named = posixpath.basename(path) == DROP_IN and rest.startswith(HEAD)
    return rest.partition(b"\n")[2] if is_named else rest


def without_us(effective: Effective, handler: Handler) -> Effective:
    """The configuration as it would be had we never come; what cannot be cut out alone stays.

    Where an administrator made our handler the default runtime, the CRI would not load: that counts as well here.
    """
    reader = effective.reader
    files: dict[str, bytes | None] = dict.fromkeys(_own_files(effective, reader))
    for file in _every_file(effective, reader, files):
        if file.path not in files and (bare := cut_out(file.document, handler, effective.containerd)) is not None:
            files[file.path] = bare
    if not files:
        return effective
    alone = load(effective.root.path, MapReader(files, reader), effective.containerd)
    return waiting_for(alone, handler) if effective.state == "ok" else alone


def waiting_for(bare: Effective, handler: Handler) -> Effective:
    """A configuration without our handler; one that lacks nothing else, because it is the default, as if it loaded."""
    cri = bare.cri
    if cri is None or cri.state != "dead" or cri.default_runtime != handler.name:
        return bare
    return dataclasses.replace(bare, cri=dataclasses.replace(cri, state="ok", reason=""))


def shaped_by_us(effective: Effective, bare: Effective, handler: Handler) -> frozenset[str]:
    """The other handlers that are not as they are without us (`bare`): a change of them, back to that, is no loss."""
    if effective.cri is None or bare.cri is None:
        return frozenset(bare.cri.runtimes if bare.cri else ())
    here, alone = effective.cri.runtimes, bare.cri.runtimes
    return frozenset(name for name in here.keys() | alone.keys() if here.get(name) != alone.get(name)) - {handler.name}


def _unread_files(effective: Effective, reader: Reader) -> list[str]:
    """The files in folders beside the root that no file imports."""
    folder = posixpath.dirname(effective.root.path)
    read = {file.path for file in effective.files}
    paths = [
        posixpath.join(folder, name, file)
        for name in reader.listdir(folder)
        for file in reader.listdir(posixpath.join(folder, name))
        if file.endswith(".toml")
    ]
    return [path for path in paths if path not in read]


def _unread_without_us(source: bytes, effective: Effective, handler: Handler) -> bytes | None:
    """Such a file without us; None where we are not in it, or it is not for us to say."""
    if handler.name.encode() not in source:
        return None
    try:
        return cut_out(parse(source, effective.containerd), handler, effective.containerd)
    except RefusedError:
        return None


def _own_files(effective: Effective, reader: Reader) -> list[str]:
    """Our own files: where the root imports them, and where a root imported them that has been replaced since."""
    folder = posixpath.dirname(effective.root.path)
    paths = [
        drop_in_path(effective) or "",
        *(file.path for file in effective.files if posixpath.basename(file.path) == DROP_IN),
        *(posixpath.join(folder, name, DROP_IN) for name in reader.listdir(folder)),
    ]
    return [
        path
        for path in dict.fromkeys(paths)
        if path
        and (source := reader.read_optional(path)) is not None
        and is_ours_alone(source, effective.containerd, HANDLER)
    ]


def _every_file(effective: Effective, reader: Reader, own: Mapping[str, object]) -> tuple[LoadedFile, ...]:
    """The files of the configuration, those as well that are not reached because one of ours is broken."""
    if effective.cri is None and own:
        without = MapReader(dict.fromkeys(own), reader)
        return load(effective.root.path, without, effective.containerd).files
    return effective.files
