"""The effective configuration: what a containerd makes of a root file and all it imports, and which file says what."""

from __future__ import annotations

import copy
import dataclasses
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from flox_node.containerd.config import schema
from flox_node.containerd.config.document import Document, Path, parse
from flox_node.containerd.config.editor import is_our_binary
from flox_node.containerd.config.merge import STAYS_IN_GRPC, merge
from flox_node.containerd.config.runtimes import CriSettings, interpret, tables_in_force
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

_CRI_TABLES = (schema.CRI, schema.CRI_GRPC, schema.CRI_RUNTIME, schema.CRI_IMAGES)


class Reader(Protocol):
    """What the model needs of a file system; `flox_node.host.HostFiles` is one. Paths are absolute."""

    def read_optional(self, path: str) -> bytes | None:
        """The bytes of a file, None where there is none."""

    def listdir(self, path: str) -> list[str]:
        """The sorted names in a folder, [] where there is none."""


class MapReader:
    """A Reader over files in memory, the rest of the world read from `below`."""

    def __init__(self, files: Mapping[str, bytes | None], below: Reader | None = None) -> None:
        self._files = dict(files)
        self._below = below

    @property
    def is_whole(self) -> bool:
        """Whether a file that is not there is known to be nowhere: false where only these files are known."""
        return self._below is not None and is_whole(self._below)

    def read_optional(self, path: str) -> bytes | None:
        """See Reader; None as a value hides the file below."""
        if path in self._files or self._below is None:
            return self._files.get(path)
        return self._below.read_optional(path)

    def listdir(self, path: str) -> list[str]:
        """See Reader."""
        names = set(self._below.listdir(path)) if self._below else set()
        folder = path.rstrip("/") + "/"
        for file, content in self._files.items():
            if not file.startswith(folder):
                continue
            name, _, below = file.removeprefix(folder).partition("/")
            if content is not None:
                names.add(name)
            elif not below:
                names.discard(name)
        return sorted(names)


def is_whole(reader: Reader) -> bool:
    """Whether a reader shows a node's every file, so that one that it does not show is missing."""
    return not isinstance(reader, MapReader) or reader.is_whole


@dataclass(frozen=True)
class LoadedFile:
    """A file of the configuration, in load order. `imported_by` is None for the root."""

    path: str
    imported_by: str | None
    document: Document
    exists: bool = True


@dataclass(frozen=True)
class Setting:
    """One value in force and where it comes from; `line` is None where it cannot be told."""

    path: Path
    value: Any
    file: str
    line: int | None


@dataclass(frozen=True)
class Finding:
    """Something that a reader of the files would not expect. `error`: this containerd does not start or has no CRI."""

    severity: Literal["error", "warning", "note"]
    code: str
    text: str
    file: str
    line: int | None = None


@dataclass(frozen=True)
class Effective:
    """The whole configuration under one containerd. `cri` is None where that would not start (`refused` says why)."""

    containerd: ContainerdVersion
    files: tuple[LoadedFile, ...]
    merged: dict[str, Any]
    cri: CriSettings | None
    refused: str | None
    reader: Reader = field(repr=False, compare=False)
    refusal: Finding | None = None

    @property
    def root(self) -> LoadedFile:
        """The file that containerd was started with."""
        return self.files[0]

    @property
    def state(self) -> Literal["ok", "disabled", "dead", "refused"]:
        """Whether the kubelet would get an answer: `refused` means that containerd itself does not start."""
        return self.cri.state if self.cri else "refused"

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the files would not expect, the worst first."""
        if self.cri is None:
            assert self.refusal is not None, "load() sets it"
            return (self.refusal,)
        return tuple(_findings(list(self.files), self.reader, self.cri, self.containerd))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every CRI value that the files put into force, and the daemon's own ones; () where it does not start."""
        return tuple(_settings(self.files, self.containerd)) if self.cri else ()


def load(root: str, reader: Reader, containerd: ContainerdVersion) -> Effective:
    """Read `root` and its imports as this containerd would. Never raises for what the files say: see `refused`.

    A root file that does not exist counts as empty, as for containerd's default path.
    """
    files: list[LoadedFile] = []
    try:
        _load_files(root, reader, containerd, files)
        merged = merge([file.document for file in files], containerd, [file.path for file in files])
        cri = _with_base_specs(interpret(merged, containerd), reader)
    except RefusedError as error:
        if not files:
            files.append(LoadedFile(root, None, _EMPTY))
        named = error.cause.partition(": ")[0]
        where = named if named.startswith("/") and " " not in named else files[-1].path
        finding = Finding("error", "refused", f"{error.cause} {error.remedy}", where)
        return Effective(containerd, tuple(files), {}, None, error.cause, reader, finding)
    return Effective(containerd, tuple(files), merged, cri, None, reader)


def _with_base_specs(cri: CriSettings, reader: Reader) -> CriSettings:
    """The CRI does not load where the file of a `base_runtime_spec` is not there or is no JSON object."""
    if cri.state != "ok" or not is_whole(reader):
        return cri
    for name, table in cri.runtimes.items():
        path = table.get("base_runtime_spec")
        if not isinstance(path, str) or not path.startswith("/"):
            continue
        source = reader.read_optional(path)
        if source is None:
            problem = "is not there"
        elif not _is_json_object(source):
            problem = "is no JSON object"
        else:
            continue
        return dataclasses.replace(
            cri, state="dead", reason=f'{path}, the base_runtime_spec of the runtime "{name}", {problem}.'
        )
    return cri


def _is_json_object(source: bytes) -> bool:
    try:
        return isinstance(json.loads(source), dict)
    except ValueError:
        return False


_WORKING_DIRECTORY = "/"  # of a systemd unit that does not say otherwise
_EMPTY = Document(b"", "", {}, go_toml_v1=False)


def _load_files(root: str, reader: Reader, containerd: ContainerdVersion, files: list[LoadedFile]) -> None:
    """Fill `files` in load order: a queue, imports of imports at its end, every path once."""
    pending: list[tuple[str, str | None]] = [(root, None)]
    seen: set[str] = set()
    while pending:
        path, parent = pending.pop(0)
        if path in seen:
            continue
        seen.add(path)
        source = reader.read_optional(path)
        if source is None and parent is not None:
            raise RefusedError(
                f"{parent} imports {path}, which does not exist: containerd {containerd} does not start"
                f"{' (`config dump` hides it)' if containerd.major >= 2 else ''}.",
                remedy=f"Take the import out of {parent}, or put the file back.",
            )
        try:
            document = parse(source or b"", containerd)
        except RefusedError as error:
            raise RefusedError(f"{path}: {error.cause}", remedy=error.remedy) from None
        files.append(LoadedFile(path, parent, document, exists=source is not None))
        pending.extend((target, path) for target in resolve_imports(path, document, reader, containerd))


def resolve_imports(path: str, document: Document, reader: Reader, containerd: ContainerdVersion) -> list[str]:
    """The files that this one imports: relative to its folder, `*` as a pattern (Go's rules: dot files match, too)."""
    found: list[str] = []
    for entry in document.data.get("imports", ()):
        if "*" not in entry:
            found.append(posixpath.normpath(posixpath.join(posixpath.dirname(path), entry)))
        elif containerd.resolves_patterns_beside_file:
            found += glob(posixpath.normpath(posixpath.join(posixpath.dirname(path), entry)), reader)
        else:
            found += glob(posixpath.join(_WORKING_DIRECTORY, entry), reader)
    return found


def glob(pattern: str, reader: Reader) -> list[str]:
    """The paths that match, sorted folder by folder, by the rules of Go's filepath.Glob."""
    matches = [""]
    for part in pattern.strip("/").split("/"):
        if not re.search(r"[*?\[\\]", part):
            matches = [f"{folder}/{part}" for folder in matches]
            continue
        expression = _pattern(part)
        matches = [
            f"{folder}/{name}"
            for folder in matches
            for name in reader.listdir(folder or "/")
            if expression.fullmatch(name)
        ]
    return matches


def _pattern(part: str) -> re.Pattern[str]:
    translated = re.sub(
        r"(?P<class>\[\^?(?:\\.|[^\]\\])+\])|\\(?P<escaped>.)|(?P<any>\*)|(?P<one>\?)|(?P<plain>.)",
        lambda m: (
            m["class"]
            or (
                ".*"
                if m["any"]
                else "."
                if m["one"]
                else re.escape(m["escaped"] if m["escaped"] is not None else m["plain"])
            )
        ),
        part,
        flags=re.DOTALL,
    )
    return re.compile(translated, re.DOTALL)


def covers(pattern: str, path: str) -> bool:
    """Whether an import pattern (absolute) takes in this path."""
    folder, _, name = pattern.rpartition("/")
    return (
        "*" in name and folder == posixpath.dirname(path) and bool(_pattern(name).fullmatch(posixpath.basename(path)))
    )


class _Tagged:
    """A value on its way through the merge that remembers where it comes from."""

    def __init__(self, value: Any, file: int, path: Path) -> None:
        self.value, self.file, self.path = value, file, path

    def __bool__(self) -> bool:
        return bool(self.value)


def _settings(files: Sequence[LoadedFile], containerd: ContainerdVersion) -> list[Setting]:
    def tag(value: Any, file: int, path: Path) -> Any:
        if path in (("version",), ("imports",), ("disabled_plugins",), ("required_plugins",)):
            return value
        if isinstance(value, dict):
            return {key: tag(item, file, (*path, key)) for key, item in value.items()}
        return _Tagged(value, file, path)

    tagged = [
        dataclasses.replace(file.document, data=tag(file.document.data, index, ())) for index, file in enumerate(files)
    ]
    merged = merge(tagged, containerd)
    merged["plugins"] = tables_in_force(merged, containerd)
    settings: list[Setting] = []

    def collect(value: Any, path: Path) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                collect(item, (*path, key))
            return
        leaf = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(leaf, _Tagged):
            shown = [leaf.value] if isinstance(value, list) else leaf.value
            source = files[leaf.file]
            settings.append(Setting(path, shown, source.path, source.document.line_of(leaf.path)))

    collect(merged, ())
    return settings


def _findings(
    files: list[LoadedFile], reader: Reader, cri: CriSettings, containerd: ContainerdVersion
) -> list[Finding]:
    found: list[Finding] = []
    root = files[0]
    if cri.state == "disabled":
        found.append(Finding("error", "cri-disabled", f"The CRI plugin is disabled: {cri.reason}", root.path))
    if cri.state == "dead":
        found.append(Finding("error", "cri-dead", f"The CRI plugin does not load: {cri.reason}", root.path))
    for index, file in enumerate(files):
        found += _dead_tables(files, index, cri, containerd)
        ids = [name for name in _CRI_TABLES[:3] if schema.has_containerd_table(file.document.data, name)]
        if len(ids) > 1:
            text = f"The file has the table `containerd` under {' and '.join(ids)}: {cri.plugin} counts."
            found.append(Finding("warning", "two-plugin-ids", text, file.path))
        if {schema.CRI, schema.CRI_GRPC} <= schema.table(file.document.data, "plugins").keys() and (
            containerd.major >= 2 and file.document.version < 2
        ):
            text = f"plugins.{schema.CRI} and {schema.CRI_GRPC} in one file: which one counts changes with every start."
            found.append(Finding("warning", "random", text, file.path))
        relative = [entry for entry in file.document.data.get("imports", ()) if "*" in entry and entry[0] != "/"]
        if relative and not containerd.resolves_patterns_beside_file:
            text = f"containerd {containerd} looks for {', '.join(relative)} below its working directory."
            found.append(Finding("warning", "relative-pattern", text, file.path, file.document.line_of(("imports",))))
    versions = {file.document.version for file in files if file.document.version}
    if len(versions) > 1:
        text = "The files declare different schemas: " + ", ".join(
            f"{file.path} {file.document.version or 'none'}" for file in files
        )
        found.append(Finding("warning", "version-clash", text + ".", root.path))
    folder = posixpath.join(posixpath.dirname(root.path), "conf.d")
    loaded = {file.path for file in files}
    ignored = [name for name in glob(f"{folder}/*.toml", reader) if name not in loaded]
    if ignored:
        text = f"{', '.join(ignored)}: not read, because no file imports it."
        found.append(Finding("note", "not-imported", text, root.path))
    return found


_PROBE = "flox-node-probe"


def _dead_tables(files: list[LoadedFile], index: int, cri: CriSettings, containerd: ContainerdVersion) -> list[Finding]:
    """CRI tables of one file that this containerd does not read, with these other files beside it."""
    file = files[index]
    found: list[Finding] = []
    for plugin in _CRI_TABLES:
        mine = schema.table(file.document.data, "plugins", plugin)
        said = {key for key, value in mine.items() if isinstance(value, dict) or value}
        if containerd.major >= 2 and plugin == schema.CRI_GRPC:
            said -= STAYS_IN_GRPC  # the streaming server's, which every schema keeps there
        if not said or _is_read(files, index, plugin, containerd):
            continue
        later = [other.path for other in files[index + 1 :] if plugin in schema.table(other.document.data, "plugins")]
        line = file.document.line_of(("plugins", plugin))
        handlers = ", ".join(sorted(schema.table(mine, "containerd", "runtimes"))) or "none"
        if said == {"containerd"} and _is_our_handler_alone(mine["containerd"]):
            text = f'The handler of flox-node under plugins."{plugin}" waits: it counts when {cri.plugin} does not.'
            found.append(Finding("note", "waiting-handler", text, file.path, line))
            continue
        text = f'The table plugins."{plugin}" (handlers: {handlers}) '
        if later and plugin == cri.plugin and not containerd.merges_deeply:
            text += f"is replaced whole by {later[-1]}: containerd {containerd} does not merge plugin tables."
            found.append(Finding("warning", "shadowed", text, file.path, line))
        else:
            text += f"is not read: with these files containerd {containerd} looks under {cri.plugin}."
            found.append(Finding("warning", "ignored-table", text, file.path, line))
    return found


def _is_our_handler_alone(section: dict[str, Any]) -> bool:
    """Whether a `containerd` table holds handlers that start our shim, and nothing else."""
    runtimes = schema.table(section, "runtimes")
    return section.keys() == {"runtimes"} and all(
        is_our_binary(schema.table(runtimes, name, "options").get("BinaryName")) for name in runtimes
    )


def _is_read(files: list[LoadedFile], index: int, plugin: str, containerd: ContainerdVersion) -> bool:
    """Whether a table counts, found out by putting something into it and looking whether it comes out."""
    data = copy.deepcopy(files[index].document.data)
    table = data["plugins"][plugin]
    table[_PROBE] = True
    if isinstance(runtimes := schema.table(table, "containerd").get("runtimes"), dict):
        runtimes[_PROBE] = {}
    documents = [file.document for file in files]
    documents[index] = dataclasses.replace(documents[index], data=data)
    merged = merge(documents, containerd)
    if not any(_PROBE in value for value in tables_in_force(merged, containerd).values()):
        return False
    return runtimes is None or _PROBE in interpret(merged, containerd).runtimes
