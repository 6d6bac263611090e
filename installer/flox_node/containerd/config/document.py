"""One TOML file as containerd reads it, with the place of every statement in it.

Values come from `tomllib`; edits are cuts in the text at statement borders, so bytes that are not cut cannot change.
(tomlkit was measured for this: adding a nested table and deleting it again gave back 41 of 99 files of the corpus.)

containerd 1.x reads with go-toml v1, which differs where these files differ: it skips a byte order mark, takes invalid
UTF-8 and carriage returns in comments, and does not decode escapes in the quoted parts of a table header.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

_BOM = b"\xef\xbb\xbf"
_TOKEN = re.compile(
    r"""(?P<text>"{3}(?:\\[\s\S]|[^\\])*?"{3,5} | '{3}[\s\S]*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
      | (?P<comment>\#(?:\r(?!\n)|[^\r\n])*)
      | (?P<newline>\r?\n)
      | (?P<open>[\[{]) | (?P<close>[\]}])
      | (?P<other>[^"'\#\[\]{}\r\n]+ | [\s\S])""",
    re.VERBOSE,
)
_KEY = re.compile(r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^="'\n])+""")
_BARE_KEY = re.compile(r"[A-Za-z0-9_. \t-]+")
_HEADER = re.compile(r"""\s*(\[{1,2})((?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^\]"'\n])+)\]""")

Path = tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    """A table header, an array-of-tables header or a key with its value.

    Characters `start` (of its first line) to `end` (behind its last line's end) of `Document.text`; `path` is the full
    path from the root.
    """

    kind: Literal["table", "array", "value"]
    path: Path
    start: int
    end: int
    line: int


@dataclass(frozen=True)
class Document:
    """A file that parsed. `text` is the source without byte order mark; `encode` is its exact inverse."""

    source: bytes
    text: str
    data: dict[str, Any]
    go_toml_v1: bool

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """Every statement in file order."""
        return tuple(_statements(self.text, self.go_toml_v1))

    @property
    def version(self) -> int:
        """The declared schema; 0 where the file declares none. `parse` made sure that it is an integer."""
        return int(self.data.get("version", 0))

    @property
    def newline(self) -> str:
        """The line end that the end of the file uses; "\\n" in a file of one line."""
        last = self.text.rfind("\n")
        return "\r\n" if last > 0 and self.text[last - 1] == "\r" else "\n"

    def encode(self, text: str) -> bytes:
        """The bytes of an edited `text`."""
        return (_BOM if self.source.startswith(_BOM) else b"") + text.encode("utf-8", "surrogateescape")

    def line_of(self, path: Path) -> int | None:
        """The line (from 1) of the last statement that sets `path`, something below it, or a value that holds it."""
        for statement in reversed(self.statements):
            shared = len(statement.path) if statement.kind == "value" else len(path)
            if statement.path[: len(path)] == path[:shared]:
                return statement.line
        return None


@lru_cache(maxsize=32)  # a run looks at the same few files many times
def parse(source: bytes, version: ContainerdVersion) -> Document:
    """Read a file as this containerd does; what comes back is shared, and nobody changes it.

    Raises:
        RefusedError: with line and column, where this containerd or TOML 1.0 refuses it.
    """
    go_toml_v1 = not version.reads_strict_toml
    try:
        if go_toml_v1:
            text = source.removeprefix(_BOM).decode("utf-8", "surrogateescape")
            data = tomllib.loads("".join(_as_go_toml_v1(text)))
        else:
            text = source.decode("utf-8")
            data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise _not_toml(f"byte {error.start} is not UTF-8", version) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        cause = "it begins with a byte order mark" if source.startswith(_BOM) else str(error)
        raise _not_toml(cause, version) from None
    _check_types(data)
    return Document(source, text, data, go_toml_v1)


def _not_toml(detail: str, version: ContainerdVersion) -> RefusedError:
    return RefusedError(
        f"The file is not TOML that containerd {version} reads: {detail}.",
        remedy="Correct the file first (`containerd -c FILE config dump` must succeed). "
        "A template has to be rendered before it can be patched.",
    )


def _check_types(data: dict[str, Any]) -> None:
    """The types of what the model reads; containerd refuses the file where they differ."""
    wanted: dict[str, type] = {"version": int, "imports": list, "disabled_plugins": list, "plugins": dict}
    for key, kind in wanted.items():
        value = data.get(key)
        wrong = value is not None and (not isinstance(value, kind) or isinstance(value, bool))
        if wrong or (kind is list and value and not all(isinstance(item, str) for item in value)):
            raise RefusedError(
                f"containerd refuses the file: `{key}` has the wrong type ({value!r}).",
                remedy=f"Correct `{key}` first.",
            )


def _as_go_toml_v1(text: str) -> Iterator[str]:
    """The text in TOML 1.0 that means what go-toml v1 makes of it."""
    position = depth = 0
    at_line_start = True
    while position < len(text):
        header = _HEADER.match(text, position) if at_line_start and depth == 0 else None
        if header is not None:
            yield header.group(0).replace("\\", "\\\\")
            position = header.end()
            at_line_start = False
            continue
        token = _next_token(text, position)
        piece = token.group(0)
        yield piece.replace("\r", " ") if token.lastgroup == "comment" else piece
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        at_line_start = token.lastgroup == "newline" or (at_line_start and piece.isspace())
        position = token.end()


def _next_token(text: str, position: int) -> re.Match[str]:
    token = _TOKEN.match(text, position)
    assert token is not None, "the last alternative takes any character"
    return token


def _statements(text: str, raw_headers: bool) -> Iterator[Statement]:
    table: Path = ()
    position = line = 0
    while position < len(text):
        start, first_line = position, line
        depth = 0
        meaningful = False
        while position < len(text):
            token = _next_token(text, position)
            position = token.end()
            line += token.group(0).count("\n")
            match token.lastgroup:
                case "open":
                    depth += 1
                case "close":
                    depth -= 1
                case "newline" if depth <= 0:
                    break
            meaningful = meaningful or (token.lastgroup != "comment" and not token.group(0).isspace())
        if not meaningful:
            continue
        header = _HEADER.match(text, start, position)
        if header is not None:
            table = key_path(header.group(2), raw=raw_headers)
            yield Statement("table" if header.group(1) == "[" else "array", table, start, position, first_line + 1)
        else:
            key = _KEY.match(text, start, position)
            assert key is not None, "tomllib accepted the text"
            yield Statement("value", table + key_path(key.group(0)), start, position, first_line + 1)


def key_path(key: str, *, raw: bool = False) -> Path:
    """The parts of a dotted key; with `raw`, escapes in quoted parts stay as they are written."""
    if _BARE_KEY.fullmatch(key):
        return tuple(part.strip() for part in key.split("."))
    value: Any = tomllib.loads((key.replace("\\", "\\\\") if raw else key) + " = 0")
    path: list[str] = []
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        path.append(part)
    return tuple(path)
