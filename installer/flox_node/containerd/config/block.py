"""The text we put into a configuration: a few lines between two marks, enough to take everything out again.

    # flox-node: begin handler flox            (", after an added newline" where the file had no newline at its end)
    # flox-node: was | <line>                  lines of a foreign handler that --adopt replaced; removal puts them back
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]      only where containerd 1.x would lose its runc
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.flox]
    ...
    # flox-node: end handler flox

Marks rather than state kept elsewhere: they travel with the file (backups, images, configuration management), they say
where the lines come from, and they survive edits around them. Where a tool drops comments, the table is still known by
its BinaryName.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.containerd.config.document import Document, Path, Statement

_NEWLINE_ADDED = ", after an added newline"
_WAS = "# flox-node: was | "
_WAS_LAST = "# flox-node: was, without newline | "
_LINE = re.compile(r"[^\n]*\n|[^\n]+$")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Marked:
    """Our lines in a file: characters `start` to `end` of the document's text."""

    start: int
    end: int
    newline: str
    newline_added: bool
    adopted: str
    """The text that --adopt replaced, "" if none."""


def find(document: Document, handler: str) -> Marked | None:
    """Our marked block for this handler; None where there is none or a mark is missing."""
    # A text that quotes our marks (in a string, say) is no block of ours.
    return find_in_text(document.text, handler, lambda offset: _inside_statement(document, offset))


def find_in_text(text: str, handler: str, quoted: Callable[[int], bool] = lambda _: False) -> Marked | None:
    """As `find`, in a text that need not be TOML (a template); `quoted` tells whether a mark at an offset is none."""
    name = re.escape(handler)
    begin = re.compile(
        rf"^[ \t]*# flox-node: begin handler {name}(?P<added>{_NEWLINE_ADDED})?[ \t]*\r?$\n?", re.MULTILINE
    )
    end = re.compile(rf"^[ \t]*# flox-node: end handler {name}[ \t]*\r?(?:\n|\Z)", re.MULTILINE)
    begins = [match for match in begin.finditer(text) if not quoted(match.start())]
    if not begins:
        return None
    first = begins[-1]
    last = next((m for m in end.finditer(text, first.end()) if not quoted(m.start())), None)
    if last is None:
        return None
    newline = "\r\n" if first.group(0).endswith("\r\n") else "\n"
    adopted = ""
    for line in _LINE.findall(text, first.end(), last.start()):
        if line.startswith(_WAS):
            adopted += line.removeprefix(_WAS)
        elif line.startswith(_WAS_LAST):
            adopted += line.removeprefix(_WAS_LAST).removesuffix(newline)
    return Marked(first.start(), last.end(), newline, first["added"] is not None, adopted)


def without_stray_marks(before: str, after: str, handler: str) -> tuple[str, str]:
    """What is before and after a table of ours that was cut out, without a mark beside it that lost the other one."""
    mark = rf"[ \t]*# flox-node: (?:begin|end) handler {re.escape(handler)}(?:{_NEWLINE_ADDED})?[ \t]*\r?"
    return re.sub(rf"(?m)^{mark}\n\Z", "", before), re.sub(rf"\A{mark}(?:\n|\Z)", "", after)


def _inside_statement(document: Document, offset: int) -> bool:
    return any(statement.start <= offset < statement.end for statement in document.statements)


def foreign_lines(document: Document, block: Marked, ours: tuple[Path, ...]) -> str:
    """The statements between our marks that somebody else put there."""
    return "".join(
        document.text[s.start : s.end]
        for s in document.statements
        if block.start <= s.start < block.end and not below(s, ours)
    )


def below(statement: Statement, paths: tuple[Path, ...]) -> bool:
    """Whether the statement sets one of these tables or something in it."""
    return any(statement.path[: len(path)] == path for path in paths)


def render(
    handler: str,
    tables: Mapping[Path, Mapping[str, Any]],
    *,
    newline: str,
    newline_added: bool = False,
    adopted: str = "",
) -> str:
    """The block for these tables: path of a table -> its values, nested tables included."""
    begin = f"# flox-node: begin handler {handler}{_NEWLINE_ADDED if newline_added else ''}{newline}"
    end = f"# flox-node: end handler {handler}{newline}"
    was = "".join(_WAS + line if line.endswith("\n") else _WAS_LAST + line + newline for line in _LINE.findall(adopted))
    return begin + was + tables_text(tables, newline) + end


def tables_text(tables: Mapping[Path, Mapping[str, Any]], newline: str) -> str:
    """The tables alone, without marks: for a file that is wholly ours."""
    return "".join(line + newline for path, values in tables.items() for line in _table(path, values))


def _table(path: Path, values: Mapping[str, Any]) -> list[str]:
    lines = [f"[{'.'.join(key(part) for part in path)}]"]
    lines += [f"{key(name)} = {value(item)}" for name, item in values.items() if not isinstance(item, dict)]
    for name, item in values.items():
        if isinstance(item, dict):
            lines += _table((*path, name), item)
    return lines


def key(part: str) -> str:
    """One part of a dotted key, quoted where it must be."""
    return part if _BARE.fullmatch(part) else value(part)


def value(item: Any) -> str:
    """A value in TOML: strings, booleans, numbers and arrays of them."""
    match item:
        case bool():
            return "true" if item else "false"
        case int() | float():
            return repr(item)
        case str():
            return '"' + "".join(_escape(char) for char in item) + '"'
        case list():
            return "[" + ", ".join(value(entry) for entry in item) + "]"
        case dict():
            return "{ " + ", ".join(f"{key(name)} = {value(entry)}" for name, entry in item.items()) + " }"
    return str(item)  # dates and times print as TOML writes them


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char.isprintable() or 0xDC80 <= ord(char) <= 0xDCFF else f"\\u{ord(char):04x}"
